//! Where each value of a YAML file stands, so that a rule that is broken by two right values can still name a line.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Location, Spanned};

/// A YAML document's mappings and lists, with their places and without their scalars.
#[derive(Debug)]
pub(super) struct Outline(Option<Spanned<Node>>);

#[derive(Debug)]
enum Node {
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
    List(Vec<Spanned<Node>>),
    Leaf,
}

impl Outline {
    /// The outline of `text`; empty where it is not YAML that has one.
    pub(super) fn of(text: &str) -> Self {
        Self(serde_saphyr::from_str_with_options(text, super::load::options()).ok())
    }

    /// The place of the value at `path`, as `services[1].timeouts.connect`, or of the innermost value around it that
    /// the document has.
    pub(super) fn place(&self, path: &str) -> Option<Location> {
        let mut at = self.0.as_ref()?;
        let mut place = at.referenced;
        for step in path.split(['.', '[']) {
            let next = match (&at.value, step.strip_suffix(']')) {
                (Node::List(items), Some(index)) => index.parse().ok().and_then(|i: usize| items.get(i)),
                (Node::Map(entries), None) => entries.iter().find(|(key, _)| key.value == step).map(|(key, value)| {
                    // A section is pointed at by its name: it has no place of its own that people would recognise.
                    place = key.referenced;
                    value
                }),
                _ => None,
            };
            let Some(next) = next else { break };
            if matches!(next.value, Node::Leaf) || step.ends_with(']') {
                place = next.referenced;
            }
            at = next;
        }
        Some(place)
    }

    /// The path of the value at `place`, or of the value whose key is there.
    pub(super) fn path_at(&self, place: Location) -> Option<String> {
        fn search(node: &Spanned<Node>, path: &str, place: Location) -> Option<String> {
            let is_at = |l: Location| (l.line(), l.column()) == (place.line(), place.column());
            match &node.value {
                Node::Map(entries) => entries.iter().find_map(|(key, value)| {
                    let inner = if path.is_empty() { key.value.clone() } else { format!("{path}.{}", key.value) };
                    if is_at(key.referenced) { Some(inner) } else { search(value, &inner, place) }
                }),
                Node::List(items) => {
                    items.iter().enumerate().find_map(|(i, item)| search(item, &format!("{path}[{i}]"), place))
                }
                Node::Leaf => None,
            }
            .or_else(|| is_at(node.referenced).then(|| path.to_owned()))
        }
        search(self.0.as_ref()?, "", place)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Map(entries))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Node::List(items))
            }
            fn visit_bool<E: Error>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_i64<E: Error>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_u64<E: Error>(self, _: u64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_i128<E: Error>(self, _: i128) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_u128<E: Error>(self, _: u128) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_f64<E: Error>(self, _: f64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_str<E: Error>(self, _: &str) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_unit<E: Error>(self) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_none<E: Error>(self) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
                d.deserialize_any(Visit)
            }
        }
        d.deserialize_any(Visit)
    }
}
