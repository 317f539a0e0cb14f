//! Where a server may send us instead.
//!
//! A URL is trusted as far as who typed it says, and a server behind it is not: its redirects must not lead
//! to hosts nobody named, nor to what only this machine can reach, such as the metadata service of a
//! cloud, whatever name they give it.

use std::cell::RefCell;
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::{Action, Attempt, Policy};
use url::{Host, Url};

use crate::environment::Environment;

/// Most redirects in a row.
const MOST: usize = 5;

/// Why a redirect is not followed; reads on from "redirects to".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// To a host that was not named.
    #[error("another host, {0}")]
    OtherHost(String),
    /// To an address that can mean another thing to this machine than to the server.
    #[error("{host}, which is at {address}, an address of this machine or link alone")]
    Near {
        /// The host.
        host: String,
        /// Its address.
        address: IpAddr,
    },
    /// To what is fetched otherwise than by HTTP.
    #[error("{0}://, which is not HTTP")]
    NotHttp(String),
    /// From https to http.
    #[error("{0} without encryption")]
    Downgraded(String),
    /// Again and again.
    #[error("one place after another without end")]
    Endless,
}

impl Refused {
    /// The refusal that made a request fail, if one did.
    pub(super) fn within<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(refused) = error.downcast_ref() {
                return Some(refused);
            }
            cause = error.source();
        }
        None
    }
}

/// Addresses that mean something else on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Near {
    /// This machine.
    Loopback,
    /// What hangs on the same link; metadata services are there.
    Link,
}

fn near(address: IpAddr) -> Option<Near> {
    match address {
        // 0.0.0.0/8 is this host, too.
        IpAddr::V4(v4) if v4.is_loopback() || v4.octets().first() == Some(&0) => {
            Some(Near::Loopback)
        }
        IpAddr::V4(v4) => v4.is_link_local().then_some(Near::Link),
        IpAddr::V6(v6) => match (embedded(v6), v6.segments()) {
            (Some(v4), _) => near(IpAddr::V4(v4)),
            _ if v6.is_loopback() || v6.is_unspecified() => Some(Near::Loopback),
            // Amazon's metadata service has an address of its own beside fe80::/10.
            (_, [0xfd00, 0xec2, ..]) => Some(Near::Link),
            _ => v6.is_unicast_link_local().then_some(Near::Link),
        },
    }
}

/// The IPv4 address that an IPv6 one stands for: mapped, or as a NAT64 gateway translates it.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = address.segments() else {
        return address.to_ipv4_mapped();
    };
    Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

tokio::task_local! {
    /// Where redirects have led the request that this task waits for.
    static LED_TO: RefCell<Option<Url>>;
}

/// Waits for a request, and says where redirects have led it, if they have: the library tells that neither
/// of an answer nor of an error.
pub(super) async fn following<T>(request: impl Future<Output = T>) -> (T, Option<Url>) {
    let scope = async {
        let answer = request.await;
        (answer, LED_TO.with(RefCell::take))
    };
    LED_TO.scope(RefCell::default(), scope).await
}

/// Decides about the redirects of one source.
#[derive(Debug)]
pub(super) struct Guard {
    source: Url,
    allowed: Vec<String>,
    /// Hosts of proxies, which are asked for whatever is asked.
    proxies: Vec<String>,
    /// Where the source is, once that is known.
    place: OnceLock<Vec<Near>>,
}

impl Guard {
    /// For `source`; `allowed` are hosts that it may redirect to, `environment` names proxies.
    pub(super) fn new(source: &Url, allowed: &[String], environment: &Environment) -> Arc<Self> {
        let place = OnceLock::new();
        if let Some(address) = address_of(source) {
            // Empty still.
            let _ = place.set(near(address).into_iter().collect());
        }
        let allowed = allowed.iter().filter_map(|host| parse_host(host).ok()).collect();
        Arc::new(Self { source: source.clone(), allowed, proxies: proxies(environment), place })
    }

    /// What reqwest is to do about redirects.
    pub(super) fn policy(self: &Arc<Self>) -> Policy {
        let guard = Arc::clone(self);
        Policy::custom(move |attempt: Attempt<'_>| -> Action {
            match guard.check(attempt.url(), attempt.previous()) {
                Ok(()) => {
                    // Outside of `following` nobody asks.
                    let _ = LED_TO.try_with(|to| to.replace(Some(attempt.url().clone())));
                    attempt.follow()
                }
                Err(refused) => attempt.error(refused),
            }
        })
    }

    fn check(&self, to: &Url, before: &[Url]) -> Result<(), Refused> {
        let host = to.host_str().map(normal).unwrap_or_default();
        if !["http", "https"].contains(&to.scheme()) {
            return Err(Refused::NotHttp(to.scheme().to_owned()));
        }
        if to.scheme() != "https" && before.iter().any(|url| url.scheme() == "https") {
            return Err(Refused::Downgraded(host));
        }
        if before.len() > MOST {
            return Err(Refused::Endless);
        }
        // A name's addresses are looked at when it is looked up. What cannot be allowed is told as that.
        if let Some(address) = address_of(to) {
            self.check_address(&host, address)?;
        }
        match self.is_source(&host) || self.allowed.contains(&host) {
            true => Ok(()),
            false => Err(Refused::OtherHost(host)),
        }
    }

    fn is_source(&self, host: &str) -> bool {
        self.source.host_str().is_some_and(|source| normal(source) == host)
    }

    fn check_address(&self, host: &str, address: IpAddr) -> Result<(), Refused> {
        let place = self.place.get().map(Vec::as_slice).unwrap_or_default();
        match near(address) {
            Some(near) if !place.contains(&near) => {
                Err(Refused::Near { host: host.to_owned(), address })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Of the addresses of a host, those that may be connected to.
    fn filter(&self, host: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        let host = normal(host);
        if self.is_source(&host) {
            // By its first answer: a name that later leads elsewhere is no better than a redirect.
            self.place.get_or_init(|| found.iter().filter_map(|at| near(at.ip())).collect());
        } else if self.proxies.contains(&host) {
            return Ok(found);
        }
        let mut refused = None;
        let mut kept = found;
        kept.retain(|at| match self.check_address(&host, at.ip()) {
            Ok(()) => true,
            Err(error) => {
                refused = Some(error);
                false
            }
        });
        match refused {
            Some(refused) if kept.is_empty() => Err(refused),
            Some(_) | None => Ok(kept),
        }
    }
}

/// The system's answers, as far as the guard lets them through.
#[derive(Debug)]
pub(super) struct Lookup(pub(super) Arc<Guard>);

impl Resolve for Lookup {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = Arc::clone(&self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let kept = guard.filter(name.as_str(), found)?;
            Ok(Box::new(kept.into_iter()) as Addrs)
        })
    }
}

fn address_of(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(v4) => Some(v4.into()),
        Host::Ipv6(v6) => Some(v6.into()),
        Host::Domain(_) => None,
    }
}

/// A host that redirects may lead to, as it is compared.
///
/// # Errors
/// Why `text` is none, in words that begin with it.
pub fn parse_host(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    if let Ok(v6) = bare.unwrap_or(text).parse::<Ipv6Addr>() {
        // As in a URL, which has each address in one spelling.
        return Ok(normal(&Host::<String>::Ipv6(v6).to_string()));
    }
    let none = || {
        format!(
            "{text:?} is no host: it takes a name or an address alone, without scheme, user, port or path"
        )
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.') || !c.is_ascii();
    if !name.chars().all(is_plain) || name.split('.').any(str::is_empty) {
        return Err(none());
    }
    match Host::parse(name) {
        Ok(Host::Domain(name)) => Ok(normal(&name)),
        Ok(Host::Ipv4(v4)) if v4.to_string() == name => Ok(v4.to_string()),
        Ok(Host::Ipv4(v4)) => Err(format!("{text:?} is an odd spelling of an address: write {v4}")),
        Ok(Host::Ipv6(_)) | Err(_) => Err(none()),
    }
}

/// A host as it is compared: one name has several spellings.
fn normal(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(['.', ']']).to_ascii_lowercase()
}

/// Hosts of the proxies that the environment names.
fn proxies(environment: &Environment) -> Vec<String> {
    ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
        .iter()
        .filter_map(|variable| environment.get(variable))
        .filter_map(|proxy| {
            let url = Url::parse(proxy).ok().filter(Url::has_host);
            url.or_else(|| Url::parse(&format!("http://{proxy}")).ok())
        })
        .filter_map(|url| url.host_str().map(normal))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(source: &str) -> Arc<Guard> {
        let allowed = ["Files.example.", "localhost", "169.254.169.254", "::1", "10.0.0.1"];
        let environment = Environment::default();
        Guard::new(&source.parse().unwrap(), &allowed.map(str::to_owned), &environment)
    }

    #[test]
    fn a_redirect_stays_on_the_host_or_goes_where_it_was_allowed_to() {
        let table = [
            ("https://a.example/x", "https://a.example/y", Ok(())),
            ("https://a.example/x", "https://A.example:8443/y", Ok(())),
            ("http://a.example/x", "https://a.example/y", Ok(())),
            ("https://a.example/x", "http://a.example/y", Err("a.example without encryption")),
            ("https://a.example/x", "https://files.example/y", Ok(())),
            ("http://a.example/x", "ftp://a.example/y", Err("ftp://, which is not HTTP")),
            ("http://a.example/x", "file:///etc/passwd", Err("file://, which is not HTTP")),
            ("https://a.example/x", "http://files.example/y", Err("files.example without")),
            ("https://a.example/x", "https://b.a.example/y", Err("another host, b.a.example")),
            (
                "https://a.example/x",
                "https://a.example.evil/y",
                Err("another host, a.example.evil"),
            ),
            ("https://a.example/x", "https://a.example@evil/y", Err("another host, evil")),
            ("http://a.example/x", "http://169.254.169.254/y", Err("169.254.169.254, which is at")),
            ("http://a.example/x", "http://[::1]/y", Err("::1, which is at ::1")),
            ("http://a.example/x", "http://127.1/y", Err("127.0.0.1, which is at")),
            ("http://10.9.9.9/x", "http://169.254.169.253/y", Err("169.254.169.253, which is at")),
            ("http://127.0.0.1/x", "http://127.0.0.2/y", Err("another host, 127.0.0.2")),
            ("http://a.example/x", "http://10.0.0.1/y", Ok(())),
            ("http://127.0.0.1:1/x", "http://127.0.0.1:2/y", Ok(())),
            ("http://127.0.0.1:1/x", "http://[::1]:2/y", Ok(())),
            ("http://127.0.0.1:1/x", "http://169.254.169.254/y", Err("169.254.169.254, which is")),
            ("http://169.254.169.254/x", "http://[::1]/y", Err("::1, which is at")),
        ];
        for (source, to, expected) in table {
            let found = guard(source).check(&to.parse().unwrap(), &[source.parse().unwrap()]);
            let found = found.map_err(|refused| refused.to_string());
            match expected {
                Ok(()) => assert_eq!(found, Ok(()), "{source} {to}"),
                Err(start) => assert!(found.unwrap_err().starts_with(start), "{source} {to}"),
            }
        }
        let many = vec!["http://a.example".parse().unwrap(); MOST + 1];
        let to = "http://a.example".parse().unwrap();
        assert_eq!(guard("http://a.example").check(&to, &many), Err(Refused::Endless));
        assert_eq!(guard("http://a.example").check(&to, &many[1..]), Ok(()));
    }

    #[test]
    fn a_name_is_as_good_as_its_addresses() {
        let at = |addresses: &[&str]| -> Vec<SocketAddr> {
            addresses.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 0)).collect()
        };
        let public = guard("https://a.example/x");
        let all = at(&["192.0.2.1", "2001:db8::1"]);
        assert_eq!(public.filter("a.example", all.clone()), Ok(all.clone()));
        for bad in [
            "127.0.0.1",
            "127.255.255.255",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.0.0",
            "169.254.255.255",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "fe80::1",
            "febf::1",
            "fd00:ec2::254",
        ] {
            // Also by the name that was public at first.
            for name in ["files.example", "a.example"] {
                let refused = public.filter(name, at(&[bad])).unwrap_err();
                assert!(matches!(refused, Refused::Near { .. }), "{bad}");
                assert_eq!(public.filter(name, at(&[bad, "192.0.2.1"])), Ok(at(&["192.0.2.1"])));
            }
        }
        for good in ["126.255.255.255", "128.0.0.1", "169.253.255.255", "169.255.0.0", "fec0::1"] {
            assert_eq!(public.filter("files.example", at(&[good])), Ok(at(&[good])));
        }
        let local = guard("http://me.example/x");
        let here = at(&["127.0.0.1"]);
        assert_eq!(local.filter("me.example", here.clone()), Ok(here.clone()));
        assert_eq!(local.filter("localhost", at(&["::1"])), Ok(at(&["::1"])));
        assert!(local.filter("files.example", at(&["169.254.169.254"])).is_err());
    }
    #[test]
    fn a_host_is_taken_in_every_spelling_of_its_own_and_nothing_else_is() {
        for (text, expected) in [
            ("b.test", "b.test"),
            ("B.Test.", "b.test"),
            ("a_b-1.test", "a_b-1.test"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("10.9.9.2", "10.9.9.2"),
            ("fd09:0:0::1", "fd09::1"),
            ("[FD09::0001]", "fd09::1"),
            ("::ffff:10.9.9.2", "::ffff:a09:902"),
        ] {
            assert_eq!(parse_host(text).as_deref(), Ok(expected), "{text}");
            let url: Url = match expected.contains(':') {
                true => format!("http://[{expected}]/x"),
                false => format!("http://{expected}/x"),
            }
            .parse()
            .unwrap();
            assert_eq!(normal(url.host_str().unwrap()), expected, "as in a URL");
        }
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "*",
            "*.test",
            "b.test:80",
            "http://b.test",
            "b.test/",
            "u@b",
            "[b.test]",
            "[10.9.9.2]",
            "[fd09::1",
            "fd09::1]",
            "[fd09::1]:80",
            "fe80::1%eth0",
            "b test",
            "b%2etest",
            "168364290",
            "0xa.9.9.2",
            "10.2306",
            "010.9.9.2",
            "10.9.9.256",
            "b.test,c.test",
        ] {
            let reason = parse_host(text).unwrap_err();
            assert!(reason.starts_with(&format!("{text:?} is ")), "{reason}");
        }
        assert!(parse_host("168364290").unwrap_err().ends_with("write 10.9.9.2"));
    }
}
