//! The canonical path against examples of RFC 3986 and Envoy, and against properties.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

const ALL: [EscapedSlashes; 4] = [
    EscapedSlashes::KeepUnchanged,
    EscapedSlashes::RejectRequest,
    EscapedSlashes::UnescapeAndRedirect,
    EscapedSlashes::UnescapeAndForward,
];

fn rules(merge_slashes: bool, path_with_escaped_slashes_action: EscapedSlashes) -> PathNormalization {
    PathNormalization { merge_slashes, path_with_escaped_slashes_action }
}

#[track_caller]
fn path(of: &str, rules: PathNormalization) -> String {
    match canonical(of, rules) {
        Canonical::Path(path) => path.into_owned(),
        other => panic!("{of}: {other:?}"),
    }
}

#[test]
fn it_is_the_one_of_rfc_3986() {
    for (given, want) in [
        ("/a/b/c/./../../g", "/a/g"),
        ("/mid/content=5/../6", "/mid/6"),
        ("/%7Esmith/%41%2d%5f", "/~smith/A-_"),
        ("/a%c3%a9/%2a", "/a%C3%A9/%2A"),
        ("/", "/"),
        ("/.", "/"),
        ("/..", "/"),
        ("/../../x", "/x"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/a/.", "/a/"),
        ("/a/b/../", "/a/"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/...", "/a/..."),
        ("/a/.b", "/a/.b"),
        ("/a/b..", "/a/b.."),
        ("//a", "//a"),
        ("/a//../b", "/a/b"),
        ("/a\\..\\b", "/b"),
        ("/100%", "/100%25"),
        ("/%zz/%4", "/%25zz/%254"),
        ("/%%32e%%32e/x", "/%252e%252e/x"),
        ("/é", "/%C3%A9"),
        ("/a{b}|\"^`[c]", "/a%7Bb%7D%7C%22%5E%60%5Bc%5D"),
        ("/a;b=c,d:@!$&'()*+", "/a;b=c,d:@!$&'()*+"),
        ("*", "*"),
    ] {
        assert_eq!(path(given, PathNormalization::default()), want, "{given}");
    }
}

#[test]
fn slashes_are_merged_after_dot_segments_are_gone_as_envoy_does() {
    let merge = rules(true, EscapedSlashes::KeepUnchanged);
    for (given, want) in [("//a///b/", "/a/b/"), ("/a//../b", "/a/b"), ("///", "/"), ("/a//.", "/a/")] {
        assert_eq!(path(given, merge), want, "{given}");
    }
}

#[test]
fn escaped_slashes_are_what_the_option_says() {
    let given = "/a%2Fb%5cc/..";
    assert_eq!(path(given, rules(false, EscapedSlashes::KeepUnchanged)), "/");
    assert_eq!(path("/a%2fb%5c", rules(false, EscapedSlashes::KeepUnchanged)), "/a%2Fb%5C");
    assert_eq!(canonical(given, rules(false, EscapedSlashes::RejectRequest)), Canonical::Refuse);
    assert_eq!(path(given, rules(false, EscapedSlashes::UnescapeAndForward)), "/a/b/");
    assert_eq!(
        canonical(given, rules(false, EscapedSlashes::UnescapeAndRedirect)),
        Canonical::Redirect("/a/b/".to_owned())
    );
    // Nothing to unescape: nowhere to be sent to.
    assert_eq!(path("/a/%2e/b", rules(false, EscapedSlashes::UnescapeAndRedirect)), "/a/b");
}

#[test]
fn what_is_canonical_is_not_copied() {
    for given in ["/", "/a/b.c/d", "/a%2Fb", "/shop.Orders/Get", "*"] {
        assert!(matches!(canonical(given, PathNormalization::default()), Canonical::Path(Cow::Borrowed(_))), "{given}");
    }
}

/// What an application that decodes and resolves would make of a path, segment by segment.
fn meaning(path: &str) -> Vec<Vec<u8>> {
    let mut segments: Vec<Vec<u8>> = Vec::new();
    for segment in path.split(['/', '\\']).skip(1) {
        let mut decoded = Vec::new();
        let mut rest = segment.as_bytes();
        while let [b, after @ ..] = rest {
            rest = after;
            match (b, triplet(after)) {
                (b'%', Some(b)) => {
                    rest = &after[2..];
                    decoded.push(b);
                }
                (b, _) => decoded.push(*b),
            }
        }
        segments.push(decoded);
    }
    let mut resolved: Vec<Vec<u8>> = Vec::new();
    let last = segments.len().saturating_sub(1);
    for (i, segment) in segments.into_iter().enumerate() {
        match &*segment {
            b"." if i == last => resolved.push(Vec::new()),
            b"." => {}
            b".." => {
                resolved.pop();
                if i == last {
                    resolved.push(Vec::new());
                }
            }
            _ => resolved.push(segment),
        }
    }
    resolved
}

#[test]
fn random_paths_keep_their_meaning_and_are_canonical_once_and_for_all() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let pieces = [
        "/", "/", "\\", ".", "..", "%2e", "%2E", "%2f", "%5C", "%", "%%", "a", "b", "%41", "%7e", "%25", "é", "//",
        ";", "%0", "%00", "~", "[", "2e", "/./", "/../",
    ];
    for _ in 0..200_000 {
        let mut given = String::from("/");
        (0..random.usize(..10)).for_each(|_| given.push_str(pieces[random.usize(..pieces.len())]));
        for (action, merge) in ALL.into_iter().flat_map(|action| [(action, false), (action, true)]) {
            let rules = rules(merge, action);
            let once = match canonical(&given, rules) {
                Canonical::Path(path) => path.into_owned(),
                Canonical::Redirect(path) => path,
                Canonical::Refuse => continue,
            };
            assert_eq!(canonical(&once, rules), Canonical::Path(Cow::Borrowed(&*once)), "{given} -> {once} {rules:?}");
            assert!(once.starts_with('/') && once.is_ascii(), "{given} -> {once}");
            assert!(!once.split('/').any(|s| matches!(s, "." | "..")), "{given} -> {once} {rules:?}");
            assert!(!merge || !once.contains("//"), "{given} -> {once} {rules:?}");
            if action == EscapedSlashes::KeepUnchanged && !merge {
                assert_eq!(meaning(&given), meaning(&once), "{given} -> {once}");
            }
        }
    }
}
