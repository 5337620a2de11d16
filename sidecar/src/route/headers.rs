//! Changes of headers.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONTENT_LENGTH, EXPECT, HOST, TRAILER},
};

use crate::{config::HeaderModifier, http::headers};

/// Changes of headers, in the order in which they are made.
#[derive(Debug)]
pub struct HeaderChanges {
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
    remove: Box<[HeaderName]>,
}

impl HeaderChanges {
    /// Those of the configuration.
    pub fn compile(from: &HeaderModifier) -> Self {
        let pairs =
            |of: &[crate::config::NamedValue]| of.iter().map(|h| (h.name.0.clone(), h.value.0.clone())).collect();
        Self { set: pairs(&from.set), add: pairs(&from.add), remove: from.remove.iter().map(|n| n.0.clone()).collect() }
    }

    /// Makes them. A message that has no room for more headers keeps those that it has.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            let _ = headers.try_insert(name, value.clone());
        }
        for (name, value) in &self.add {
            let _ = headers.try_append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

/// Why no route may change a header of this name, if none may.
pub fn why_not(name: &HeaderName) -> Option<&'static str> {
    if *name == HOST {
        Some("the host is changed by URLRewrite")
    } else if [CONTENT_LENGTH, EXPECT, TRAILER].contains(name) {
        Some("it says how the message is framed")
    } else if headers::is_meshs_own(name) && *name != http::header::PROXY_AUTHORIZATION {
        Some("it belongs to one connection, or only the mesh may say it")
    } else {
        None
    }
}
