//! What is wrong with a configuration: where, what, and what to do about it.

use std::{fmt, path::PathBuf};

use serde_saphyr::Location;

/// Everything that is wrong with a configuration, as far as it could be read. Prints one paragraph a problem: the
/// place as `file:line:column`, what is wrong, the line itself, and the remedy.
#[derive(Debug)]
pub struct ConfigError {
    pub(super) problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) place: Place,
    pub(super) message: String,
    /// What to do next; a sentence without its full stop.
    pub(super) remedy: String,
}

#[derive(Debug)]
pub(super) enum Place {
    /// An environment variable.
    Variable(String),
    /// A file as a whole.
    File(PathBuf),
    /// A piece of a file.
    Piece { file: PathBuf, line: u64, column: u64, snippet: Option<Snippet> },
}

/// A line of the file and which part of it is meant.
#[derive(Debug)]
pub(super) struct Snippet {
    text: String,
    /// In characters, from 0.
    start: usize,
    /// In characters, at least 1.
    width: usize,
}

/// The longest line that is shown, in characters.
const MAX_LINE: usize = 160;

impl Place {
    /// The piece of `file`, whose content is `text`, that is at `at`.
    pub(super) fn at(file: PathBuf, text: &str, at: Location) -> Self {
        if at.line() == 0 {
            return Self::File(file);
        }
        let (line, column) = (at.line(), at.column());
        let snippet = usize::try_from(line - 1).ok().and_then(|n| text.lines().nth(n)).and_then(|text| {
            let start = usize::try_from(column.max(1) - 1).ok()?;
            let length = text.trim_end().chars().count();
            if length == 0 || length > MAX_LINE || start > length {
                return None;
            }
            let width = usize::try_from(at.span().len()).unwrap_or(1).clamp(1, (length - start).max(1));
            Some(Snippet { text: text.trim_end().to_owned(), start, width })
        });
        Self::Piece { file, line, column, snippet }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, message, remedy } = self;
        match place {
            Place::Variable(name) => write!(f, "environment variable {name}: {message}")?,
            Place::File(file) => write!(f, "{}: {message}", file.display())?,
            Place::Piece { file, line, column, snippet } => {
                write!(f, "{}:{line}:{column}: {message}", file.display())?;
                if let Some(Snippet { text, start, width }) = snippet {
                    let number = line.to_string();
                    let margin = " ".repeat(number.len());
                    // Tabs are kept, so that the caret stands below its text whatever their width.
                    let indent: String =
                        text.chars().take(*start).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
                    write!(f, "\n {number} | {text}\n {margin} | {indent}{}", "^".repeat(*width))?;
                }
            }
        }
        write!(f, "\n  => {remedy}")
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

/// The one of `known` that `word` was most likely meant to be.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Upper case, '-' for '_' and the other house's camelCase are no typing errors: they cost nothing.
    let plain = |s: &str| s.chars().filter(|c| !matches!(c, '_' | '-')).collect::<String>().to_ascii_lowercase();
    let want = plain(word);
    let (distance, candidate, length) = known
        .into_iter()
        .map(|candidate| {
            let plain = plain(candidate);
            (strsim::damerau_levenshtein(&want, &plain), candidate, plain.len().max(want.len()))
        })
        .min()?;
    (distance * 2 <= length).then_some(candidate)
}
