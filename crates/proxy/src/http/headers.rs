//! What a proxy changes in the head of a message.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, Request, StatusCode, Version};
use meshfed_pki::SpiffeId;
use meshfed_proxy_config::{ANSWERED, ANSWERED_BEYOND};

const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const XFF: HeaderName = HeaderName::from_static("x-forwarded-for");
const ANSWERED_BY: HeaderName = HeaderName::from_static(ANSWERED);
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Where a request wants to go: the URI's authority, else the Host header.
pub(super) fn authority<B>(request: &Request<B>) -> Option<&str> {
    if let Some(authority) = request.uri().authority() {
        return Some(authority.as_str());
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next()?.to_str().ok()?;
    // Two of them could be read differently by us and by the upstream.
    hosts.next().is_none().then_some(host)
}

/// Removes what concerns only the connection that the message came over (RFC 9110, section 7.6.1).
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // A message must not talk us out of these.
        .filter(|name| ![HOST, CONTENT_LENGTH, XFCC, XFF].contains(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
    let trailers = headers.get(TE).is_some_and(|te| {
        te.as_bytes()
            .split(|b| *b == b',')
            .any(|t| t.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
    // gRPC servers insist on it.
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Says of an answer that it is not ours, where that matters, in place of what the upstream says about
/// that.
pub(super) fn set_answered_beyond(headers: &mut HeaderMap, status: StatusCode) {
    headers.remove(ANSWERED_BY);
    if (502..=504).contains(&status.as_u16()) {
        headers.insert(ANSWERED_BY, HeaderValue::from_static(ANSWERED_BEYOND));
    }
}

/// Says who the client is, in place of what the client says about that.
pub(super) fn set_client_id(
    headers: &mut HeaderMap,
    own: Option<&SpiffeId>,
    client: Option<&SpiffeId>,
) {
    headers.remove(XFCC);
    let Some(client) = client else { return };
    let by = own.map_or("", SpiffeId::as_str);
    // An id has no character that a header value may not have.
    if let Ok(value) = HeaderValue::from_str(&format!("By={by};URI={client}")) {
        headers.insert(XFCC, value);
    }
}

pub(super) fn remove_client_id(headers: &mut HeaderMap) {
    headers.remove(XFCC);
}

pub(super) fn append_forwarded_for(headers: &mut HeaderMap, client: IpAddr) {
    let mut list: Vec<u8> = Vec::new();
    for value in headers.get_all(XFF) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(client.to_string().as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&list) {
        headers.insert(XFF, value);
    }
}

/// The request's target as this upstream wants it: origin form and Host for HTTP/1.1, scheme and
/// authority for HTTP/2. `None` if the parts make no URI.
pub(super) fn retarget<B>(
    request: &mut Request<B>,
    authority: &str,
    path: &str,
    http2: bool,
    tls: bool,
) -> Option<()> {
    let path: PathAndQuery = path.parse().ok()?;
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(path);
    let headers = request.headers_mut();
    if http2 {
        headers.remove(HOST);
        parts.authority = Some(authority.parse::<Authority>().ok()?);
        parts.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    } else {
        headers.insert(HOST, HeaderValue::from_str(authority).ok()?);
    }
    headers.remove(EXPECT);
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    *request.version_mut() = if http2 {
        Version::HTTP_2
    } else {
        Version::HTTP_11
    };
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn headers_of_the_connection_are_removed_and_no_others() {
        let mut h = headers(&[
            ("connection", "x-own, close, Host"),
            ("x-own", "1"),
            ("host", "a"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, Trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut h);
        assert_eq!(
            h,
            headers(&[("host", "a"), ("accept", "*/*"), ("te", "trailers")])
        );
    }

    #[test]
    fn a_client_cannot_say_who_it_is() {
        let id = "spiffe://a/ns/b/sa/c".parse().unwrap();
        let mut h = headers(&[("x-forwarded-client-cert", "By=;URI=spiffe://evil/ns/b/sa/c")]);
        set_client_id(&mut h, None, Some(&id));
        assert_eq!(h[XFCC], "By=;URI=spiffe://a/ns/b/sa/c");
        set_client_id(&mut h, None, None);
        assert!(h.is_empty());
    }

    #[test]
    fn the_clients_address_comes_last() {
        let mut h = headers(&[("x-forwarded-for", "1.2.3.4")]);
        append_forwarded_for(&mut h, "127.0.0.9".parse().unwrap());
        assert_eq!(h[XFF], "1.2.3.4, 127.0.0.9");
    }

    #[test]
    fn two_host_headers_are_no_authority() {
        let twice = Request::builder()
            .header("host", "a")
            .header("host", "b")
            .body(())
            .unwrap();
        assert_eq!(authority(&twice), None);
    }

    #[test]
    fn an_absolute_target_becomes_what_the_upstream_speaks() {
        let request = || {
            Request::builder()
                .uri("http://ratings:9080/ratings/0?x=1")
                .header("host", "other")
                .body(())
                .unwrap()
        };
        let mut one = request();
        retarget(&mut one, "ratings:9080", "/ratings/0?x=1", false, true).unwrap();
        assert_eq!(one.uri(), "/ratings/0?x=1");
        assert_eq!(one.headers()[HOST], "ratings:9080");
        let mut two = request();
        retarget(&mut two, "ratings:9080", "/r", true, true).unwrap();
        assert_eq!(two.uri(), "https://ratings:9080/r");
        assert!(!two.headers().contains_key(HOST));
    }
}
