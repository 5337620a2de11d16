//! Cross-origin resource sharing: GEP-1767, and the "CORS protocol" of the Fetch standard.

use http::{
    HeaderMap, HeaderValue, Method,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
        ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
    },
};

use crate::config::{Cors, OriginPattern};

const TRUE: HeaderValue = HeaderValue::from_static("true");
const ANY: HeaderValue = HeaderValue::from_static("*");
/// Methods that need no preflight: they are always allowed.
const SIMPLE_METHODS: [&str; 3] = ["GET", "HEAD", "POST"];

/// What is said to browsers about other origins.
#[derive(Debug)]
pub struct CorsPolicy {
    origins: Box<[OriginPattern]>,
    credentials: bool,
    methods: List,
    headers: List,
    expose: List,
    max_age: HeaderValue,
}

/// Names, or all of them.
#[derive(Debug)]
enum List {
    None,
    All,
    Names(HeaderValue),
}

impl List {
    fn compile<'a>(names: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let names: Vec<&str> = names.collect();
        if names.is_empty() {
            return Ok(Self::None);
        }
        if names.contains(&"*") {
            return Ok(Self::All);
        }
        let text = names.join(", ");
        HeaderValue::try_from(&text).map(Self::Names).map_err(|_| format!("\"{text}\" is not a list of names"))
    }
}

impl CorsPolicy {
    /// That of the configuration.
    pub fn compile(from: &Cors) -> Result<Self, String> {
        let given = from.allow_methods.iter().map(String::as_str);
        let beside = SIMPLE_METHODS.into_iter().filter(|m| !from.allow_methods.iter().any(|given| given == m));
        Ok(Self {
            origins: from.allow_origins.clone().into(),
            credentials: from.allow_credentials,
            methods: List::compile(given.chain(beside))?,
            headers: List::compile(from.allow_headers.iter().map(String::as_str))?,
            expose: List::compile(from.expose_headers.iter().map(String::as_str))?,
            max_age: HeaderValue::from(from.max_age.unwrap_or(5)),
        })
    }

    /// The origin of the request, where it may read the answer.
    pub fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(ORIGIN)?;
        self.origins.iter().any(|o| o.matches(origin.as_bytes())).then(|| origin.clone())
    }

    /// The headers of the answer to a preflight.
    pub fn preflight(&self, request: &HeaderMap) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let Some(origin) = self.allowed(request) else {
            // The browser refuses what is not allowed by name.
            headers.insert(VARY, HeaderValue::from_static("origin"));
            return headers;
        };
        self.origin(&mut headers, origin);
        // With credentials `*` is a name like others: what was asked for is said instead.
        let mut allow = |list: &List, name, asked| match list {
            List::Names(names) => drop(headers.insert(name, names.clone())),
            List::All if !self.credentials => drop(headers.insert(name, ANY)),
            List::All => {
                if let Some(asked) = request.get(asked) {
                    headers.insert(name, asked.clone());
                }
            }
            List::None => {}
        };
        allow(&self.methods, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_REQUEST_METHOD);
        allow(&self.headers, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_REQUEST_HEADERS);
        headers.insert(ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        headers
    }

    /// Puts the policy onto an answer for `origin`, if that is allowed, in place of what the application says.
    pub fn apply(&self, headers: &mut HeaderMap, origin: Option<HeaderValue>) {
        let said = [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_EXPOSE_HEADERS,
            ACCESS_CONTROL_ALLOW_METHODS,
            ACCESS_CONTROL_ALLOW_HEADERS,
            ACCESS_CONTROL_MAX_AGE,
        ];
        said.iter().for_each(|name| drop(headers.remove(name)));
        let Some(origin) = origin else {
            headers.append(VARY, HeaderValue::from_static("origin"));
            return;
        };
        self.origin(headers, origin);
        match &self.expose {
            List::Names(names) => drop(headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, names.clone())),
            // With credentials this exposes a header of the name "*", which is what the Fetch standard makes of it.
            List::All => drop(headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, ANY)),
            List::None => {}
        }
    }

    fn origin(&self, headers: &mut HeaderMap, origin: HeaderValue) {
        if self.origins.contains(&OriginPattern::Any) && !self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
            return;
        }
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(VARY, HeaderValue::from_static("origin"));
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
    }
}

/// Whether a request is a preflight: a browser's question and nobody's request.
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS && headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}
