//! Addresses: which server one belongs to, and where a redirect leads.

use ureq::http::Uri;

/// Scheme, host and port: what two addresses must share for a secret of one to be given to the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    is_https: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// The server of an address, or what is wrong with the address.
    pub(super) fn of(address: &Uri) -> Result<Self, String> {
        let is_https = match address.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("its address is neither http:// nor https://".to_owned()),
        };
        let Some(host) = address.host().filter(|it| !it.is_empty()) else {
            return Err("its address names no host".to_owned());
        };
        let port = address.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        Ok(Self { is_https, host: host.to_lowercase(), port })
    }
}

/// Where a redirect leads from an address.
///
/// # Errors
/// If `location` is no address, is one with a user's name (which looks like another host to people), or leads from https to
/// http, where everybody on the way can read and write along.
pub(super) fn redirected(from: &Uri, location: &str) -> Result<Uri, String> {
    let scheme = from.scheme_str().unwrap_or("https");
    let authority = from.authority().map(|it| it.as_str()).unwrap_or_default();
    let lower = location.to_ascii_lowercase();
    let text = if lower.starts_with("http://") || lower.starts_with("https://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.split(['/', '?', '#']).next().unwrap_or_default().contains(':') {
        return Err("it redirects to what is neither http:// nor https://".to_owned());
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |it| it.0);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let to: Uri = text.parse().map_err(|_| "it redirects to what is no address".to_owned())?;
    let origin = Origin::of(&to).map_err(|_| "it redirects to what is no address".to_owned())?;
    let user = to.authority().is_some_and(|it| it.as_str().contains('@') && it.as_str() != authority);
    if user {
        return Err("it redirects to an address with a user's name".to_owned());
    }
    if scheme == "https" && !origin.is_https {
        return Err(format!("it redirects from https to http://{}, where anybody could read along", origin.host));
    }
    Ok(to)
}

/// A part of an address, with everything escaped that could end it or mean something else.
pub(super) fn escaped(part: &str) -> String {
    let mut text = String::with_capacity(part.len());
    for byte in part.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn redirects_lead_where_they_say() {
        let from = uri("https://hub.co:8443/a/b?c=d");
        for (location, to) in [
            ("https://cdn.co/x", "https://cdn.co/x"),
            ("HTTPS://cdn.co/x?y=z%2F", "https://cdn.co/x?y=z%2F"),
            ("//cdn.co/x", "https://cdn.co/x"),
            ("/x/y", "https://hub.co:8443/x/y"),
            ("x", "https://hub.co:8443/a/x"),
            ("?x", "https://hub.co:8443/a/?x"),
        ] {
            assert_eq!(redirected(&from, location).unwrap(), uri(to), "{location}");
        }
        for location in [
            "http://hub.co:8443/x",
            "ftp://hub.co",
            "file:///etc/passwd",
            "https://",
            "//",
            "a b",
            "https://hub.co@evil.co/",
        ] {
            assert!(redirected(&from, location).is_err(), "{location}");
        }
        assert!(redirected(&uri("http://hub.co/a"), "https://hub.co/a").is_ok());
    }

    #[test]
    fn a_server_is_its_scheme_host_and_port() {
        let origin = |text: &str| Origin::of(&uri(text)).unwrap();
        assert_eq!(origin("https://hub.co/a"), origin("https://HUB.co:443/b"));
        for other in ["http://hub.co", "https://hub.co:444", "https://hub.co.evil.co", "https://hub.co@evil.co"] {
            assert_ne!(origin("https://hub.co"), origin(other), "{other}");
        }
    }

    #[test]
    fn parts_cannot_end_early() {
        assert_eq!(escaped("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(escaped("a?b#c%ü"), "a%3Fb%23c%25%C3%BC");
    }
}
