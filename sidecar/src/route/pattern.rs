//! Texts to compare with: as they are, or by a regular expression that takes linear time and bounded room.

use regex::bytes::{Regex, RegexBuilder};

/// The longest regular expression, in bytes.
pub const MAX_REGEX: usize = 1_024;
/// The most that one may take when compiled, in bytes: enough for `[a-z]{1,1000}`, far too little to hurt.
const MAX_COMPILED: usize = 256 * 1024;

/// A text to compare with.
#[derive(Debug, Clone)]
pub(super) enum Text {
    /// The same bytes.
    Exact(Box<[u8]>),
    /// All of it matches.
    Regex(Regex),
}

impl Text {
    /// Whether `text` is meant.
    pub(super) fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(this) => **this == *text,
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

/// Compiles an expression that must match the whole of a text; the error says what is wrong in one line.
///
/// The engine is the crate `regex`, whose time is linear in the text whatever the expression. Classes are those of ASCII,
/// as paths are ASCII: `\d` is ten digits and no more.
pub fn whole(expression: &str) -> Result<Regex, String> {
    if expression.len() > MAX_REGEX {
        return Err(format!("a regular expression of {} bytes is longer than {MAX_REGEX}", expression.len()));
    }
    // On its own first: one that closes our group and opens another would mean something else within it.
    let build = |pattern: &str| {
        RegexBuilder::new(pattern).unicode(false).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).build()
    };
    build(expression).and_then(|_| build(&format!("^(?:{expression})$"))).map_err(|e| match e {
        regex::Error::CompiledTooBig(_) => "the regular expression is too large when compiled".to_owned(),
        e => {
            let text = e.to_string();
            let why = text.lines().rev().find_map(|l| l.strip_prefix("error: ")).unwrap_or("it cannot be compiled");
            format!("\"{expression}\" is not a regular expression: {why}")
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_text_must_match() {
        let regex = whole("/v[0-9]+/.*").unwrap();
        assert!(regex.is_match(b"/v2/x") && regex.is_match(b"/v10/"));
        assert!(!regex.is_match(b"/a/v2/x") && !regex.is_match(b"/v/x"));
        // An alternative does not escape from the anchors, nor does a comment.
        assert!(!whole("/a|/b").unwrap().is_match(b"/ab") && whole("/a|/b").unwrap().is_match(b"/b"));
        assert!(whole("(?x)/a # b").is_err() || !whole("(?x)/a # b").unwrap().is_match(b"/ab"));
        assert!(!whole("/a$").unwrap().is_match(b"/a\n"));
    }

    #[test]
    fn what_is_no_expression_says_why_and_what_is_huge_is_refused() {
        assert!(whole("/a(").unwrap_err().contains("unclosed group"));
        assert!(whole(")|(").is_err());
        assert!(whole(r"\p{L}").is_err());
        assert!(whole("(a{1000}){1000}").unwrap_err().contains("too large"));
        assert!(whole(&"a".repeat(2_000)).unwrap_err().contains("longer than 1024"));
    }

    #[test]
    fn a_hostile_text_takes_linear_time() {
        let regex = whole("(a|a)*b|(a*)*c").unwrap();
        let text = vec![b'a'; 60_000];
        let begun = std::time::Instant::now();
        assert!(!regex.is_match(&text));
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}
