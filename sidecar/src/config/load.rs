//! From a file and the environment to a [`Config`], or to an error that says what to write instead.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde_saphyr::{Error as YamlError, Options, SnippetMode, UserMessageFormatter};

use super::{
    Config, env,
    outline::Outline,
    problem::{ConfigError, Place, Problem, nearest},
    validate,
};

/// A configuration of thousands of services and routes stays below this many bytes; what is larger is another file.
const MAX_BYTES: u64 = 16 << 20;

/// Reads the configuration: the YAML file at `path`, if any, then the `OUTRIGGER_` variables of `env`, which win.
///
/// No file, or an empty one, gives the defaults. What it gives obeys every rule of the types' documentation.
pub fn load(path: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Result<Config, ConfigError> {
    let source = path.map(Source::read).transpose()?;
    let mut config = source.as_ref().map(Source::parse).transpose()?.unwrap_or_default();
    let variables = env::apply(&mut config, env)?;

    let issues = validate::issues(&config);
    if issues.is_empty() {
        return Ok(config);
    }
    let outline = source.as_ref().map(|s| Outline::of(&s.text));
    let problems = issues.into_iter().map(|issue| {
        let validate::Issue { path, message, remedy } = issue;
        let variable = variables.iter().find(|(set, _)| path == **set || path.starts_with(&format!("{set}[")));
        let place = match (variable, &source) {
            (Some((_, name)), _) => Place::Variable(name.clone()),
            (None, Some(source)) => match outline.as_ref().and_then(|o| o.place(&path)) {
                Some(at) => Place::at(source.file.clone(), &source.text, at),
                None => Place::File(source.file.clone()),
            },
            // Without a file, only variables can be wrong, and here one is at odds with a default.
            (None, None) => Place::File(PathBuf::from("the defaults")),
        };
        Problem { place, message: format!("{path}: {message}"), remedy }
    });
    Err(ConfigError { problems: problems.collect() })
}

/// A configuration file.
struct Source {
    file: PathBuf,
    text: String,
}

impl Source {
    fn read(file: &Path) -> Result<Self, ConfigError> {
        let fail = |message: String, remedy: &str| Problem {
            place: Place::File(file.to_owned()),
            message,
            remedy: remedy.to_owned(),
        };
        let mut bytes = Vec::new();
        let read = File::open(file).and_then(|f| f.take(MAX_BYTES + 1).read_to_end(&mut bytes));
        if let Err(e) = read {
            let remedy = match e.kind() {
                io::ErrorKind::NotFound => "check the path given to --config or OUTRIGGER_CONFIG",
                io::ErrorKind::PermissionDenied => "let the sidecar's user (uid 1337) read it",
                io::ErrorKind::IsADirectory => "give the file itself",
                _ => "give a file that can be read",
            };
            return Err(fail(format!("the configuration cannot be read: {e}"), remedy).into());
        }
        if bytes.len() as u64 > MAX_BYTES {
            let message = format!("larger than {} MiB: this cannot be a configuration", MAX_BYTES >> 20);
            return Err(fail(message, "give the right file").into());
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self { file: file.to_owned(), text }),
            Err(e) => {
                let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
                Err(fail(format!("line {line} is not UTF-8 text"), "save the file as UTF-8").into())
            }
        }
    }

    fn parse(&self) -> Result<Config, ConfigError> {
        // What is only comments is an empty document, which is what "all defaults" looks like.
        let blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#') || line.trim() == "---";
        if self.text.trim_start_matches('\u{feff}').lines().all(blank) {
            return Ok(Config::default());
        }
        serde_saphyr::from_str_with_options(&self.text, options()).map_err(|e| self.problem(&e).into())
    }

    fn problem(&self, error: &YamlError) -> Problem {
        let error = innermost(error);
        let outline = Outline::of(&self.text);
        let mut at = error.location();
        let mut path = at.and_then(|at| outline.path_at(at)).unwrap_or_default();
        if is_about_a_mapping(error) {
            // A mapping begins where its first key does, and a wrong key is the mapping's fault.
            path.truncate(path.rfind('.').unwrap_or(0));
        } else if !path.is_empty() {
            at = outline.place(&path).or(at);
        }
        let place = match at {
            Some(at) => Place::at(self.file.clone(), &self.text, at),
            None => Place::File(self.file.clone()),
        };
        let (what, remedy) = explain(error, &path);
        let message = if path.is_empty() { what } else { format!("{path}: {what}") };
        Problem { place, message, remedy }
    }
}

pub(super) fn options() -> Options {
    serde_saphyr::options! {
        // `yes` and `on` are words here, as in YAML 1.2.
        strict_booleans: true,
        with_snippet: false,
        // What `MAX_BYTES` can hold: thousands of routes have more than the default of 250,000.
        budget: serde_saphyr::budget! { max_nodes: 2_000_000, max_events: 6_000_000 },
    }
}

fn innermost(error: &YamlError) -> &YamlError {
    match error {
        YamlError::WithSnippet { error, .. } | YamlError::AliasError { error, .. } => innermost(error),
        error => error,
    }
}

fn is_about_a_mapping(error: &YamlError) -> bool {
    match error {
        YamlError::SerdeUnknownField { .. }
        | YamlError::SerdeMissingField { .. }
        | YamlError::DuplicateMappingKey { .. } => true,
        YamlError::SerdeInvalidType { unexpected, .. } => unexpected == "map",
        _ => false,
    }
}

/// What is wrong and what to do, in the words of the configuration rather than of its parser.
fn explain(error: &YamlError, path: &str) -> (String, String) {
    match error {
        YamlError::SerdeUnknownField { field, expected, .. } => {
            let remedy = match nearest(field, expected.iter().copied()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None if expected.is_empty() => "remove it; nothing is set here".to_owned(),
                None => format!("remove it; the fields here are {}", expected.join(", ")),
            };
            (format!("unknown field \"{field}\""), remedy)
        }
        YamlError::SerdeUnknownVariant { variant, expected, .. } => {
            let list = expected.join(", ");
            let remedy = match nearest(variant, expected.iter().copied()) {
                Some(near) => format!("did you mean \"{near}\"? The values are {list}"),
                None => format!("give one of {list}"),
            };
            (format!("unknown value \"{variant}\""), remedy)
        }
        YamlError::SerdeMissingField { field, .. } => {
            (format!("the field \"{field}\" is missing"), format!("add \"{field}: …\" here"))
        }
        YamlError::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().unwrap_or("a key");
            (format!("\"{key}\" is given twice"), "keep one of the two".to_owned())
        }
        YamlError::SerdeInvalidType { unexpected, expected, .. }
        | YamlError::SerdeInvalidValue { unexpected, expected, .. } => {
            (format!("{unexpected} cannot stand here"), format!("give {}", in_words(expected)))
        }
        YamlError::InvalidScalar { ty, .. } => {
            ("this is not a value of the right kind".to_owned(), format!("give {}", in_words(ty)))
        }
        YamlError::Unexpected { expected, .. }
            if matches!(*expected, "mapping start" | "sequence start" | "string scalar") =>
        {
            ("this is not a value of the right kind".to_owned(), format!("give {}", in_words(expected)))
        }
        YamlError::SerdeVariantId { msg, .. } => (msg.clone(), "correct the name before the ':'".to_owned()),
        YamlError::Message { msg, .. } => (msg.clone(), remedy_of(path, msg).to_owned()),
        YamlError::MultipleDocuments { .. } => {
            ("a second YAML document begins".to_owned(), "keep one document; remove the \"---\"".to_owned())
        }
        YamlError::Budget { breach, .. } => {
            (format!("the YAML is too deep or too large ({breach:?})"), "write it without nested aliases".to_owned())
        }
        other => {
            let text = other.render_with_options(serde_saphyr::render_options! {
                formatter: &UserMessageFormatter,
                snippets: SnippetMode::Off,
            });
            // The place is said already.
            let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what).to_owned();
            (what, "correct the YAML: look at the indentation, the ':' and the quotes around here".to_owned())
        }
    }
}

/// The parser's name of a kind of value, in words.
fn in_words(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u32" | "u64" => {
            let max = match expected {
                "u8" => u64::from(u8::MAX),
                "u16" => u64::from(u16::MAX),
                "u32" => u64::from(u32::MAX),
                _ => u64::MAX,
            };
            format!("a whole number from 0 to {max}, without a unit")
        }
        "a nonzero u32" => "a whole number of 1 or more".to_owned(),
        "socket address" => "an address with its port, as 127.0.0.1:15000 or \"[::1]:15000\"".to_owned(),
        "mapping start" => "a section: fields of its own, indented below it".to_owned(),
        "sequence start" => "a list, as [a, b]".to_owned(),
        "string scalar" => "a single word or text".to_owned(),
        other => match other.strip_prefix("struct ") {
            Some(_) => "a section: fields of its own, indented below it".to_owned(),
            None => other.to_owned(),
        },
    }
}

/// The remedy for an error of one of the types' own parsers, whose message says already what the type looks like.
fn remedy_of(path: &str, message: &str) -> &'static str {
    if message.contains("socket address") {
        "give an IP address with its port, as 127.0.0.1:15000 or \"[::1]:15000\""
    } else if message.contains("not a duration") {
        "give a number with its unit, as 250ms, 3s, 5m or 24h"
    } else if message.contains("percentage") {
        "give a whole number from 0 to 100"
    } else if path.contains("identities") || path.starts_with("inbound.allow") {
        "give an id as spiffe://mesh.example/ns/shop/sa/orders"
    } else {
        "correct this value"
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
