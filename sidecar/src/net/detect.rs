//! What a connection carries, told from its first bytes.
//!
//! The bytes are only looked at, never consumed. A decision is made as soon as no other is possible, so that an HTTP
//! request that arrives one byte at a time is still HTTP, and what cannot be HTTP or TLS is not held back.

use std::io;

use rustls::server::Acceptor;

use crate::config::Host;

/// The client connection preface of HTTP/2 (RFC 9113 section 3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest method name looked for. The registry's longest is `UPDATEREDIRECTREF` with 17 bytes.
const MAX_METHOD: usize = 24;
/// The longest run of bytes kept while looking: a request head with its Host, or a ClientHello.
pub const MAX_LOOK: usize = 64 * 1024;

/// What the first bytes say.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// An HTTP/1.x request.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A TLS ClientHello.
    Tls(Hello),
    /// Something else.
    Opaque,
}

/// What a ClientHello asks for (RFC 8446 section 4.1.2).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The server name, where it is a DNS name.
    pub sni: Option<Host>,
    /// The application protocols offered, in the client's order.
    pub alpn: Vec<Vec<u8>>,
}

impl Hello {
    /// Whether one of the mesh's own protocols is offered, of this version or another.
    pub fn is_mesh(&self) -> bool {
        self.alpn.iter().any(|p| p.starts_with(b"outrigger-"))
    }
}

/// What `bytes`, the beginning of a connection, are; nothing while more than one answer is possible.
pub fn kind(bytes: &[u8]) -> Option<Kind> {
    let first = *bytes.first()?;
    if first == 0x16 {
        return tls(bytes);
    }
    let preface = bytes.len().min(H2_PREFACE.len());
    if bytes[..preface] == H2_PREFACE[..preface] {
        // "PRI * HTTP/2.0" is no HTTP/1 request, so nothing else begins with these four bytes and goes on like this.
        return (bytes.len() >= H2_PREFACE.len()).then_some(Kind::Http2);
    }
    http1(bytes)
}

/// A request line is a token, a space and a target (RFC 9112 section 3); the target of a request to an origin begins
/// with `/`, `http` or is `*`. CONNECT asks for a tunnel of a forward proxy, which is bytes to us.
fn http1(bytes: &[u8]) -> Option<Kind> {
    let method = bytes.iter().take(MAX_METHOD + 1).take_while(|b| b.is_ascii_uppercase() || **b == b'-').count();
    match bytes.get(method) {
        None if method <= MAX_METHOD => return None,
        Some(b' ') if (3..=MAX_METHOD).contains(&method) && &bytes[..method] != b"CONNECT" => {}
        _ => return Some(Kind::Opaque),
    }
    let target = &bytes[method + 1..];
    for form in [&b"/"[..], b"http://", b"https://", b"* HTTP/1."] {
        let n = form.len().min(target.len());
        if target[..n].eq_ignore_ascii_case(&form[..n]) {
            return (n == form.len()).then_some(Kind::Http1);
        }
    }
    Some(Kind::Opaque)
}

fn tls(bytes: &[u8]) -> Option<Kind> {
    if bytes.len() >= 2 && bytes[1] != 3 {
        return Some(Kind::Opaque);
    }
    if bytes.len() < 5 {
        return None;
    }
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    loop {
        match acceptor.read_tls(&mut rest as &mut dyn io::Read) {
            Ok(0) if rest.is_empty() => return (bytes.len() >= MAX_LOOK).then(|| Kind::Tls(Hello::default())),
            Ok(_) => {}
            Err(_) => return Some(Kind::Tls(Hello::default())),
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                return Some(Kind::Tls(Hello {
                    sni: hello.server_name().and_then(|name| Host::parse(name).ok()),
                    alpn: hello.alpn().map(|all| all.map(<[u8]>::to_vec).collect()).unwrap_or_default(),
                }));
            }
            Ok(None) => {}
            // TLS of a kind that we do not know is still the application's own business.
            Err(_) => return Some(Kind::Tls(Hello::default())),
        }
    }
}

/// The Host of the HTTP/1 request that `bytes` begin with (RFC 9112 section 3.2).
#[derive(Debug, PartialEq, Eq)]
pub enum HostHeader {
    /// Not there yet.
    More,
    /// The head is complete, or longer than we look, and has none that is a DNS name.
    None,
    /// This one, without its port.
    Is(Host),
}

/// Finds the Host of the request that `bytes` begin with.
pub fn host_header(bytes: &[u8]) -> HostHeader {
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut headers);
    let complete = match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => true,
        Ok(httparse::Status::Partial) => bytes.len() >= MAX_LOOK,
        Err(_) => true,
    };
    let target = request.path.and_then(|p| p.split_once("://")).map(|(_, rest)| {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        rest[..end].rsplit('@').next().unwrap_or_default()
    });
    let named = target.map(str::as_bytes).or_else(|| {
        // A header that the parser has given is complete with its line end.
        request.headers.iter().find(|h| h.name.eq_ignore_ascii_case("host")).map(|h| h.value)
    });
    match named.map(|n| std::str::from_utf8(n).ok().and_then(host_of)) {
        Some(Some(host)) => HostHeader::Is(host),
        Some(None) => HostHeader::None,
        None if complete => HostHeader::None,
        None => HostHeader::More,
    }
}

/// The DNS name in `host[:port]`; nothing where it is an IP address or no name at all.
pub fn host_of(authority: &str) -> Option<Host> {
    if authority.starts_with('[') {
        return None;
    }
    let name = authority.rsplit_once(':').map_or(authority, |(name, _)| name);
    if name.parse::<std::net::Ipv4Addr>().is_ok() {
        return None;
    }
    Host::parse(name).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn decided_at(text: &[u8], want: &Kind) -> usize {
        for n in 0..=text.len() {
            if let Some(kind) = kind(&text[..n]) {
                assert_eq!(&kind, want, "after {n} bytes of {:?}", String::from_utf8_lossy(text));
                return n;
            }
        }
        panic!("never decided: {:?}", String::from_utf8_lossy(text));
    }

    #[test]
    fn http_is_recognised_one_byte_at_a_time() {
        assert_eq!(decided_at(b"GET / HTTP/1.1\r\n", &Kind::Http1), 5);
        assert_eq!(decided_at(b"OPTIONS * HTTP/1.1\r\n", &Kind::Http1), 17);
        assert_eq!(decided_at(b"VERSION-CONTROL http://a/ HTTP/1.0\r\n", &Kind::Http1), 23);
        assert_eq!(decided_at(H2_PREFACE, &Kind::Http2), H2_PREFACE.len());
        decided_at(b"PRINT /x HTTP/1.1\r\n", &Kind::Http1);
    }

    #[test]
    fn what_is_neither_http_nor_tls_is_not_held_back() {
        for text in [
            &b"\x00"[..],
            b"EHLO me\r\n",
            b"SET key value\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"\x16\x02",
            b"get / HTTP/1.1",
            b"GET key\r\n",
            b"CONNECT a:1 HTTP/1.1\r\n",
            b"SSH-2.0-x\r\n",
            b"{\"json\":1}",
            b"G /",
            b"PRI * HTTP/3",
            b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            decided_at(text, &Kind::Opaque);
        }
    }

    #[test]
    fn a_client_hello_tells_its_name_and_protocols() {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"outrigger-h2".to_vec(), b"h2".to_vec()];
        let mut client = rustls::ClientConnection::new(config.into(), "Orders.mesh".try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        for n in 0..bytes.len() {
            assert_eq!(kind(&bytes[..n]), None, "decided after {n} of {} bytes", bytes.len());
        }
        let Some(Kind::Tls(hello)) = kind(&bytes) else { panic!("not recognised") };
        assert_eq!(hello.sni, Some(Host::parse("orders.mesh").unwrap()));
        assert!(hello.is_mesh());
        assert_eq!(hello.alpn[1], b"h2");
    }

    #[test]
    fn the_host_is_found_as_soon_as_its_line_is_complete() {
        let text = b"GET /a HTTP/1.1\r\nAccept: */*\r\nHOST: Orders.mesh:8080\r\nX: y\r\n\r\n";
        let host = HostHeader::Is(Host::parse("orders.mesh").unwrap());
        let first = (0..=text.len()).find(|n| host_header(&text[..*n]) != HostHeader::More).unwrap();
        assert_eq!(host_header(&text[..first]), host);
        assert!(first <= text.len() - 8, "only after {first} bytes");
        assert_eq!(
            host_header(b"GET http://a.mesh/x HTTP/1.1\r\nHost: b.mesh\r\n\r\n"),
            HostHeader::Is(Host::parse("a.mesh").unwrap())
        );
        assert_eq!(host_header(b"GET / HTTP/1.0\r\n\r\n"), HostHeader::None);
        assert_eq!(host_header(b"GET / HTTP/1.1\r\nHost: 10.0.0.1:80\r\n\r\n"), HostHeader::None);
    }
}
