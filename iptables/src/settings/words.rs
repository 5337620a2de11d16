//! Values that have a form in text, read from whatever a format makes of them: words, numbers, truth values, lists.

use std::{fmt, str::FromStr};

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

/// A value that has a form in text, and in YAML perhaps that of a number or a truth value.
pub(super) fn one<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: fmt::Display,
{
    match Words::deserialize(deserializer)? {
        Words(words) if words.is_empty() => Ok(None),
        Words(words) => parsed(&words.join(",")).map(Some),
    }
}

/// Several of them.
pub(super) fn list<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: fmt::Display,
{
    let Words(words) = Words::deserialize(deserializer)?;
    let parts = words.iter().flat_map(|word| word.split(',')).map(str::trim).filter(|part| !part.is_empty());
    parts.map(parsed).collect::<Result<_, _>>().map(Some)
}

fn parsed<T, E>(text: &str) -> Result<T, E>
where
    T: FromStr,
    T::Err: fmt::Display,
    E: de::Error,
{
    text.trim().parse().map_err(|error: T::Err| E::custom(format!("{text:?}: {error}")))
}

/// Scalars as they were written.
struct Words(Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalars;

        impl<'de> Visitor<'de> for Scalars {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word, a number or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Words, E> {
                Ok(Words(vec![text.to_owned()]))
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Words, E> {
                self.visit_str(if value { "true" } else { "false" })
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Words, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Words, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_unit<E: de::Error>(self) -> Result<Words, E> {
                Ok(Words(Vec::new()))
            }

            fn visit_none<E: de::Error>(self) -> Result<Words, E> {
                self.visit_unit()
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Words, D::Error> {
                Words::deserialize(deserializer)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Words, A::Error> {
                let mut all = Vec::new();
                while let Some(Words(words)) = sequence.next_element()? {
                    all.extend(words);
                }
                Ok(Words(all))
            }
        }

        deserializer.deserialize_any(Scalars)
    }
}
