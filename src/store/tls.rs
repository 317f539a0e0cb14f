//! The HTTP client under every remote store.

use std::sync::OnceLock;

use object_store::client::HttpClient;

use super::{Error, Result, StoreOptions};

/// Builds a client. Redirects are followed only for plain URLs: a signature covers its host.
///
/// Trust comes from the system, which honours `SSL_CERT_FILE` and company roots. Mozilla's roots
/// stand in where the system has none, as in a minimal container; building a client would fail
/// there, even one that only speaks to an `http://` endpoint.
pub(super) fn client(options: &StoreOptions, follow_redirects: bool) -> Result<HttpClient> {
    // Another part of the process may have installed a provider first, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = || {
        let redirects = if follow_redirects {
            reqwest::redirect::Policy::custom(|attempt| {
                let downgraded = attempt.url().scheme() != "https"
                    && attempt.previous().iter().any(|url| url.scheme() == "https");
                if downgraded || attempt.previous().len() > 5 {
                    attempt.stop()
                } else {
                    attempt.follow()
                }
            })
        } else {
            reqwest::redirect::Policy::none()
        };
        reqwest::Client::builder()
            .user_agent(concat!("thawfs/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.connect_timeout)
            // Parallel GETs want connections of their own: over one HTTP/2 connection they share
            // its congestion window, and one lost packet stalls all of them.
            .http1_only()
            .redirect(redirects)
            // A presigned URL would leak to the target of a redirect as its referrer.
            .referer(false)
            .tcp_nodelay(true)
    };
    let client = match builder().build() {
        Ok(client) => client,
        Err(_) => {
            builder().tls_certs_only(mozilla_roots().iter().cloned()).build().map_err(|error| {
                Error::BadOption { what: "TLS".into(), reason: super::error::root_cause(&error) }
            })?
        }
    };
    Ok(HttpClient::new(client))
}

fn mozilla_roots() -> &'static [reqwest::Certificate] {
    static ROOTS: OnceLock<Vec<reqwest::Certificate>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        webpki_root_certs::TLS_SERVER_ROOT_CERTS
            .iter()
            .filter_map(|der| reqwest::Certificate::from_der(der).ok())
            .collect()
    })
}
