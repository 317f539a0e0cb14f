//! What can be done when a store says no.
//!
//! Flags are named as on the command line, with their value behind a `=`, where all commands that open a
//! store have them. Who takes them in another spelling puts them so: see `cli::mount_helper`.

use crate::store::{Error, Refusal, Refused, Right};

/// What the user can do about an error, where there is something.
pub(super) fn advice(error: &Error) -> Option<String> {
    match error {
        Error::Timeout { last, .. } => advice(last),
        Error::BadRedirect { refused: Refused::OtherHost(host), .. } => {
            Some(format!("--allow-redirects-to={host} follows it, if that is where the archive is"))
        }
        Error::UnsupportedProfile { profile, .. } => Some(format!(
            "use credential_process = aws configure export-credentials --profile {profile} \
             --format process"
        )),
        error => fixed(error).map(Into::into),
    }
}

/// The same, where it is in the same words whatever the error holds.
fn fixed(error: &Error) -> Option<&'static str> {
    Some(match error {
        Error::NotFound { refusal: None, .. } => "check the path",
        Error::NotFound { refusal: Some(refusal), .. } => refused(refusal)
            .unwrap_or("check the bucket and key, and that the backup was completed"),
        Error::NoSuchBucket { refusal, .. } => {
            refused(refusal).unwrap_or("check the bucket's name and --endpoint")
        }
        Error::AccessDenied { refusal, .. }
        | Error::RefusedCredentials { refusal, .. }
        | Error::Refused { refusal, .. } => return refused(refusal),
        Error::BadCredentials { .. } => {
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, choose a --profile of \
             ~/.aws/credentials, or use --anonymous for a public bucket"
        }
        Error::ExpiredCredentials { object } if object.starts_with("http") => {
            "a presigned URL is good for some time only: get another"
        }
        Error::ExpiredCredentials { .. } => {
            "get new credentials; a profile with credential_process or a rewritten \
             credentials file is read again without a new mount, the environment is not"
        }
        Error::RangeIgnored { .. } => {
            "the server, or a proxy before it, must support Range requests"
        }
        Error::Changed { .. } => "mount again to see the new object",
        Error::Connect { reason, .. } if reason.contains("UnknownIssuer") => {
            "who issued the server's certificate is not known here: name a file with the issuer's \
             certificate in AWS_CA_BUNDLE or SSL_CERT_FILE"
        }
        Error::Connect { reason, .. } if reason.contains("CaUsedAsEndEntity") => {
            "the server shows an issuer's own certificate: give it one that the issuer signed, and \
             name a file with the issuer's in AWS_CA_BUNDLE or SSL_CERT_FILE"
        }
        Error::Connect { reason, .. } if reason.contains("invalid peer certificate") => {
            "the server's certificate is not good for this host or this time: check --endpoint and \
             the clock"
        }
        Error::Connect { .. } => "check --endpoint, the network and any proxy variables",
        // Where its URL is, is all that is known of it.
        Error::WrongEndpoint { object, .. } if object.starts_with("http") => return None,
        Error::WrongEndpoint { .. } => "set --region or --endpoint to where the bucket lives",
        Error::ReadOnly { .. } => "use an s3:// source or a local directory for writing",
        Error::UnsupportedSource { .. } => "use s3://BUCKET/KEY, http(s)://…, file:///… or a path",
        Error::UnsupportedFormat { .. } => "only squashfs backups (data.sqsh) can be mounted",
        Error::Timeout { .. }
        | Error::BadRedirect { .. }
        | Error::UnsupportedProfile { .. }
        | Error::OutOfRange { .. }
        | Error::CannotCopy { .. }
        | Error::TooLarge { .. }
        | Error::Truncated { .. }
        | Error::Stalled { .. }
        | Error::Slow { .. }
        | Error::Unavailable { .. }
        | Error::BadAnswer { .. }
        | Error::BadOption { .. }
        | Error::Io { .. }
        | Error::ShutDown { .. } => return None,
    })
}

/// What the user can do about it, by the server's code and not by its status: a wrong clock and an
/// archived object are 403, too.
fn refused(refusal: &Refusal) -> Option<&'static str> {
    if refusal.bucket_twice {
        return Some(
            "the endpoint names the bucket, too: leave it out there, or add --virtual-host-style",
        );
    }
    let says = |words: &str| refusal.message.to_ascii_lowercase().contains(words);
    Some(match (refusal.code.as_str(), refusal.right) {
        ("RequestTimeTooSkewed", _) => {
            "the clock of this machine is wrong: set it, best by NTP; the keys are not to blame"
        }
        ("InvalidObjectState", _) => {
            "the object is archived: have the store restore it first (aws s3api restore-object), \
             or copy it to a storage class that is read at once"
        }
        ("SignatureDoesNotMatch", Right::Url) => {
            "the URL is not as it was signed: quote it for the shell, or sign another"
        }
        ("SignatureDoesNotMatch", _) => {
            "AWS_SECRET_ACCESS_KEY (or the profile's) does not belong to the key id, or a proxy \
             changed the request"
        }
        ("InvalidAccessKeyId", _) => {
            "this endpoint does not know the key id: check AWS_ACCESS_KEY_ID, --profile and \
             --endpoint"
        }
        ("InvalidToken" | "InvalidSecurity", _) => {
            "AWS_SESSION_TOKEN (or the profile's) does not belong to the key id or this endpoint"
        }
        ("NotSignedUp" | "AccountProblem" | "AllAccessDisabled", _) => {
            "this is for the owner of the account to settle with the provider"
        }
        (code, _) if code.starts_with("KMS") || says("kms:") => {
            "the object is encrypted: reading it needs kms:Decrypt on its key, writing \
             kms:GenerateDataKey"
        }
        ("InvalidRequest" | "InvalidArgument", _) if says("server side encryption") => {
            "the object is encrypted with a key of the customer's own, which is not supported"
        }
        _ if says("explicit deny") => "a policy forbids it whatever others allow: see its words",
        (_, Right::Url) if refusal.status == 401 => {
            "the server wants a user and password: https://USER:PASSWORD@HOST/…"
        }
        (_, Right::Url) if refusal.status == 403 => {
            "a presigned URL is good for one method, one object and some time: get another"
        }
        (_, Right::Anonymous) if matches!(refusal.status, 401 | 403) => {
            "it is not public: leave --anonymous out, and say whose credentials to use"
        }
        (_, Right::Keys) if refusal.status == 401 => {
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the --profile, and the --endpoint"
        }
        (_, Right::Keys) if refusal.status == 403 => {
            "reading needs s3:GetObject on this key (and s3:ListBucket to tell a missing object \
             from a forbidden one), writing s3:PutObject, deleting s3:DeleteObject"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_goes_by_the_code_the_words_and_the_right() {
        use Right::{Anonymous, Keys, Url};
        let table: &[(Right, u16, &str, &str, &str)] = &[
            (Keys, 403, "AccessDenied", "", "s3:GetObject"),
            (Anonymous, 403, "AccessDenied", "", "leave --anonymous out"),
            (Url, 403, "AccessDenied", "", "presigned"),
            (Keys, 403, "RequestTimeTooSkewed", "", "clock"),
            (Keys, 403, "InvalidObjectState", "", "archived"),
            (Keys, 403, "AccessDenied", "not authorized to perform: kms:Decrypt", "encrypted"),
            (Keys, 400, "KMS.DisabledException", "", "encrypted"),
            (Keys, 403, "AccessDenied", "with an explicit deny in a policy", "policy"),
            (Keys, 400, "InvalidRequest", "a form of Server Side Encryption", "customer"),
            (Keys, 403, "SignatureDoesNotMatch", "", "AWS_SECRET_ACCESS_KEY"),
            (Url, 403, "SignatureDoesNotMatch", "", "quote it"),
            (Keys, 403, "InvalidAccessKeyId", "", "AWS_ACCESS_KEY_ID"),
            (Keys, 403, "InvalidToken", "", "AWS_SESSION_TOKEN"),
            (Url, 401, "", "", "USER:PASSWORD"),
            (Keys, 400, "EntityTooSmall", "", ""),
        ];
        for (right, status, code, message, expected) in table {
            let refusal = Box::new(Refusal {
                asked: "GET https://h/b/k".into(),
                status: *status,
                code: (*code).into(),
                message: (*message).into(),
                right: *right,
                bucket_twice: false,
            });
            let hint = advice(&Error::Refused { object: "s3://b/k".into(), refusal });
            let hint = hint.unwrap_or_default();
            assert!(hint.contains(expected), "{right:?} {code}: {hint}");
            let keys_are_named = hint.contains("AWS_ACCESS_KEY_ID");
            assert_eq!(keys_are_named, *code == "InvalidAccessKeyId", "{right:?} {code}: {hint}");
        }
    }

    #[test]
    fn a_host_that_may_be_allowed_is_named_behind_a_timeout_too() {
        let object = || "http://a/k".to_owned();
        let refused = Refused::OtherHost("files.example".into());
        let last = Box::new(Error::BadRedirect { object: object(), refused });
        let error = Error::Timeout { object: object(), after: Default::default(), last };
        let hint = advice(&error).unwrap();
        assert!(hint.starts_with("--allow-redirects-to=files.example "), "{hint}");
        assert!(!error.to_string().contains("--"), "{error}");
    }
}
