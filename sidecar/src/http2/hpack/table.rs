//! The decoder's dynamic table (RFC 7541 section 2.3.2), of fields that were parsed once.

use std::collections::VecDeque;

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, StatusCode,
    uri::{Authority, PathAndQuery},
};

use super::{ENTRY_OVERHEAD, Error, Field, Pseudo, Scheme, static_table};

/// The name of a field that is read.
#[derive(Clone, Debug)]
pub(super) enum Name {
    Pseudo(Pseudo),
    Header(HeaderName),
    /// Malformed, and this long.
    Invalid(usize),
}

impl Name {
    /// Parses a name that came as a literal (RFC 9113 section 8.2.1).
    pub(super) fn parse(name: &[u8]) -> Self {
        match name {
            b":authority" => Self::Pseudo(Pseudo::Authority),
            b":method" => Self::Pseudo(Pseudo::Method),
            b":path" => Self::Pseudo(Pseudo::Path),
            b":protocol" => Self::Pseudo(Pseudo::Protocol),
            b":scheme" => Self::Pseudo(Pseudo::Scheme),
            b":status" => Self::Pseudo(Pseudo::Status),
            // A quotation mark is no token character (RFC 9110 section 5.6.2), though `HeaderName` takes it here.
            _ => match HeaderName::from_lowercase(name) {
                Ok(header) if !name.contains(&b'"') => Self::Header(header),
                _ => Self::Invalid(name.len()),
            },
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Pseudo(pseudo) => pseudo.as_str().len(),
            Self::Header(header) => header.as_str().len(),
            Self::Invalid(length) => *length,
        }
    }
}

/// What an entry says.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Field(Field),
    /// The value, the name or both are no good. The entry stands for itself wherever it is referred to, and a name
    /// that is good may be used with another value.
    Malformed(Name),
}

impl Content {
    /// Parses a field's value. What it keeps is its own copy, so that no entry pins the block it came in.
    pub(super) fn parse(name: Name, value: &[u8], sensitive: bool) -> Self {
        let field = match &name {
            Name::Pseudo(pseudo) => parse_pseudo(*pseudo, value),
            Name::Header(header) => parse_header(header, value, sensitive),
            Name::Invalid(_) => None,
        };
        field.map_or_else(|| Self::Malformed(name), Self::Field)
    }
}

fn parse_pseudo(name: Pseudo, value: &[u8]) -> Option<Field> {
    match name {
        Pseudo::Method => Method::from_bytes(value).ok().map(Field::Method),
        Pseudo::Scheme => parse_scheme(value).map(Field::Scheme),
        // RFC 9113 section 8.3.1: no user information.
        Pseudo::Authority if value.contains(&b'@') => None,
        Pseudo::Authority => Authority::from_maybe_shared(Bytes::copy_from_slice(value)).ok().map(Field::Authority),
        Pseudo::Path => parse_path(value).map(Field::Path),
        Pseudo::Protocol => {
            // A method is a token, and so is a protocol.
            Method::from_bytes(value).ok().map(|_| Field::Protocol(Bytes::copy_from_slice(value)))
        }
        Pseudo::Status => StatusCode::from_bytes(value).ok().map(Field::Status),
    }
}

fn parse_scheme(value: &[u8]) -> Option<Scheme> {
    match value {
        b"http" => Some(Scheme::Http),
        b"https" => Some(Scheme::Https),
        [first, rest @ ..]
            if first.is_ascii_alphabetic()
                && rest.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'-' | b'.')) =>
        {
            Some(Scheme::Other(Bytes::copy_from_slice(value)))
        }
        _ => None,
    }
}

/// `PathAndQuery` takes any beginning and cuts a fragment off; neither belongs in a request (RFC 9113 section 8.3.1).
fn parse_path(value: &[u8]) -> Option<PathAndQuery> {
    if value != b"*" && value.first() != Some(&b'/') {
        return None;
    }
    let path = PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(value)).ok()?;
    (path.as_str().len() == value.len()).then_some(path)
}

/// RFC 9113 section 8.2.1: no white space around a value; `HeaderValue` refuses the control characters.
fn parse_header(name: &HeaderName, value: &[u8], sensitive: bool) -> Option<Field> {
    if let [b' ' | b'\t', ..] | [.., b' ' | b'\t'] = value {
        return None;
    }
    let mut value = HeaderValue::from_bytes(value).ok()?;
    value.set_sensitive(sensitive);
    Some(Field::Header(name.clone(), value))
}

/// A field in a table.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) content: Content,
    /// Name, value and overhead (RFC 7541 section 4.1).
    pub(super) size: u32,
}

impl Entry {
    /// The name, for a literal that refers to it.
    pub(super) fn name(&self) -> Name {
        match &self.content {
            Content::Malformed(name) => name.clone(),
            Content::Field(field) => match field {
                Field::Method(_) => Name::Pseudo(Pseudo::Method),
                Field::Scheme(_) => Name::Pseudo(Pseudo::Scheme),
                Field::Authority(_) => Name::Pseudo(Pseudo::Authority),
                Field::Path(_) => Name::Pseudo(Pseudo::Path),
                Field::Protocol(_) => Name::Pseudo(Pseudo::Protocol),
                Field::Status(_) => Name::Pseudo(Pseudo::Status),
                Field::Header(name, _) => Name::Header(name.clone()),
            },
        }
    }
}

/// Both tables, which share one index space (RFC 7541 section 2.3.3).
#[derive(Debug)]
pub(super) struct Table {
    /// The newest entry first.
    pub(super) entries: VecDeque<Entry>,
    pub(super) size: usize,
    max: usize,
}

impl Table {
    pub(super) fn new(max: usize) -> Self {
        Self { entries: VecDeque::new(), size: 0, max }
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// RFC 7541 section 4.3.
    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max;
        self.evict(max);
        if self.entries.is_empty() {
            self.entries = VecDeque::new();
        }
    }

    #[inline]
    pub(super) fn get(&self, index: usize) -> Result<&Entry, Error> {
        // An index of zero wraps to one that no table has.
        let position = index.wrapping_sub(1);
        static_table::ENTRIES
            .get(position)
            .or_else(|| self.entries.get(position.wrapping_sub(static_table::LENGTH)))
            .ok_or(Error::Index)
    }

    /// RFC 7541 section 4.4: an entry larger than the table empties it and is not kept.
    pub(super) fn insert(&mut self, content: &Content, size: usize) {
        self.evict(self.max.saturating_sub(size));
        if size <= self.max {
            self.size += size;
            self.entries.push_front(Entry { content: content.clone(), size: size as u32 });
        }
    }

    fn evict(&mut self, allowed: usize) {
        while self.size > allowed
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size as usize;
        }
    }
}

/// What a field counts in a table and in a list (RFC 7541 section 4.1, RFC 9113 section 6.5.2).
pub(super) fn entry_size(name: usize, value: usize) -> usize {
    name + value + ENTRY_OVERHEAD
}
