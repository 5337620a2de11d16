//! The encoder's dynamic table (RFC 7541 section 2.3.2), found by hash.

use std::{
    collections::VecDeque,
    hash::{Hash, Hasher},
};

use http::HeaderName;
use rustc_hash::FxHasher;

use super::{Pseudo, static_table, table::entry_size};

/// The name of a field that is sent.
#[derive(Clone, Copy)]
pub(super) enum Key<'a> {
    Pseudo(Pseudo),
    Header(&'a HeaderName),
}

impl Key<'_> {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Pseudo(pseudo) => pseudo.as_str(),
            Self::Header(header) => header.as_str(),
        }
    }

    /// The static table's entry with this name.
    pub(super) fn static_index(&self) -> Option<usize> {
        match self {
            Self::Pseudo(pseudo) => static_table::pseudo_index(*pseudo),
            Self::Header(header) => static_table::name_index(header),
        }
    }
}

/// What a field is looked for by. Whoever makes fields whose hashes collide gains nothing: every hit is compared with
/// its entry, and no search takes more than [`WINDOW`] steps.
#[derive(Clone, Copy)]
pub(super) struct Hashes {
    name: u64,
    pub(super) field: u64,
}

impl Hashes {
    #[inline]
    pub(super) fn of(key: Key<'_>, value: &[u8]) -> Self {
        let mut hasher = FxHasher::default();
        match key {
            Key::Pseudo(pseudo) => hasher.write_u8(0x80 | pseudo as u8),
            Key::Header(name) => name.hash(&mut hasher),
        }
        let name = hasher.finish();
        hasher.write(value);
        Self { name, field: hasher.finish() }
    }
}

/// Shortly before the numbers wrap, so that every connection that lives for a while, and every test, sees them do so.
const FIRST_NUMBER: u32 = u32::MAX - 200;

#[derive(Debug)]
enum Name {
    Pseudo(Pseudo),
    Header(HeaderName),
}

#[derive(Debug)]
struct Entry {
    name: Name,
    value: Box<[u8]>,
    /// The number of the entry that followed this one in a block, the last time.
    follower: u32,
}

impl Entry {
    #[inline(always)]
    fn is(&self, key: Key<'_>, value: &[u8]) -> bool {
        same(&self.value, value) && self.has_name(key)
    }

    #[inline(always)]
    fn has_name(&self, key: Key<'_>) -> bool {
        match (&self.name, key) {
            (Name::Pseudo(own), Key::Pseudo(other)) => *own == other,
            (Name::Header(own), Key::Header(other)) => own == other,
            _ => false,
        }
    }

    fn size(&self) -> usize {
        let name = match &self.name {
            Name::Pseudo(pseudo) => pseudo.as_str(),
            Name::Header(header) => header.as_str(),
        };
        entry_size(name.len(), self.value.len())
    }
}

/// What the peer's decoder holds after all that was sent.
///
/// An entry is known by the number of its insertion, so nothing moves when others come and go. The numbers may wrap:
/// one that an index kept for that long leads to an entry that is compared like any other.
#[derive(Debug)]
pub(super) struct Sent {
    /// The newest first.
    entries: VecDeque<Entry>,
    /// The number of the next insertion.
    next: u32,
    size: usize,
    max: usize,
    fields: Index<256>,
    names: Index<64>,
    /// The entry that came before in this block, and the one expected now.
    previous: Option<u32>,
    expected: u32,
    /// The one that the last block began with.
    first: u32,
}

impl Sent {
    pub(super) fn new(max: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            next: FIRST_NUMBER,
            size: 0,
            max,
            fields: Index::new(),
            names: Index::new(),
            previous: None,
            expected: 0,
            first: 0,
        }
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max;
        self.evict(max);
    }

    /// Begins a block.
    #[inline]
    pub(super) fn begin(&mut self) {
        self.previous = None;
        self.expected = self.first;
    }

    /// The HPACK index of a field, if it is the one that came in this place the last time.
    ///
    /// Lists repeat, so this finds most fields for the price of one comparison, without a hash.
    #[inline(always)]
    pub(super) fn expect(&mut self, key: Key<'_>, value: &[u8]) -> Option<usize> {
        let age = self.age(self.expected);
        let entry = self.entries.get(age)?;
        if !entry.is(key, value) {
            return None;
        }
        self.previous = Some(self.expected);
        self.expected = entry.follower;
        Some(static_table::LENGTH + 1 + age)
    }

    /// The HPACK index of a field.
    pub(super) fn find(&mut self, key: Key<'_>, value: &[u8], hashes: Hashes) -> Option<usize> {
        let number =
            self.fields.find(hashes.field, |number| self.live(number).is_some_and(|entry| entry.is(key, value)))?;
        self.follow(number);
        Some(static_table::LENGTH + 1 + self.age(number))
    }

    /// Remembers that the entry `number` came in this place.
    fn follow(&mut self, number: u32) {
        let age = self.previous.map(|previous| self.age(previous));
        match age.map(|age| self.entries.get_mut(age)) {
            Some(Some(previous)) => previous.follower = number,
            Some(None) => {}
            None => self.first = number,
        }
        self.previous = Some(number);
        self.expected = self.live(number).map_or(number, |entry| entry.follower);
    }

    /// The HPACK index of a field with this name.
    pub(super) fn find_name(&self, key: Key<'_>, hashes: Hashes) -> Option<usize> {
        let number =
            self.names.find(hashes.name, |number| self.live(number).is_some_and(|entry| entry.has_name(key)))?;
        Some(static_table::LENGTH + 1 + self.age(number))
    }

    /// The entry with this number, if it was not evicted.
    fn live(&self, number: u32) -> Option<&Entry> {
        self.entries.get(self.age(number))
    }

    #[inline]
    fn age(&self, number: u32) -> usize {
        self.next.wrapping_sub(number).wrapping_sub(1) as usize
    }

    /// Adds a field, which must not be larger than the table.
    pub(super) fn insert(&mut self, key: Key<'_>, value: &[u8], hashes: Hashes) {
        let size = entry_size(key.as_str().len(), value.len());
        self.evict(self.max.saturating_sub(size));
        let name = match key {
            Key::Pseudo(pseudo) => Name::Pseudo(pseudo),
            Key::Header(header) => Name::Header(own(header)),
        };
        let number = self.next;
        self.entries.push_front(Entry { name, value: value.into(), follower: number });
        self.next = number.wrapping_add(1);
        self.size += size;
        let (next, live) = (self.next, self.entries.len());
        self.fields.insert(hashes.field, number, next, live);
        self.names.insert(hashes.name, number, next, live);
        self.follow(number);
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> Vec<usize> {
        self.entries.iter().map(Entry::size).collect()
    }

    fn evict(&mut self, allowed: usize) {
        while self.size > allowed
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size();
        }
    }
}

/// Compares what is mostly short without a call.
#[inline]
fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    match a.len() {
        0..4 => a.iter().zip(b).all(|(a, b)| a == b),
        4..8 => a.first_chunk::<4>() == b.first_chunk() && a.last_chunk::<4>() == b.last_chunk(),
        8..16 => a.first_chunk::<8>() == b.first_chunk() && a.last_chunk::<8>() == b.last_chunk(),
        16..32 => a.first_chunk::<16>() == b.first_chunk() && a.last_chunk::<16>() == b.last_chunk(),
        _ => a == b,
    }
}

/// A copy that pins no buffer of a connection the name came from.
fn own(name: &HeaderName) -> HeaderName {
    HeaderName::from_lowercase(name.as_str().as_bytes()).unwrap_or_else(|_| name.clone())
}

/// A slot of an index and its three successors may hold what has the slot's hash.
const WINDOW: usize = 4;

/// From a hash to the number of an insertion. What was evicted stays until its slot is needed.
#[derive(Debug)]
struct Index<const N: usize> {
    slots: Box<[Slot; N]>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The half of the hash that does not tell the place, with the lowest bit set; zero in a slot never used.
    tag: u32,
    number: u32,
}

impl<const N: usize> Index<N> {
    fn new() -> Self {
        Self { slots: Box::new([Slot { tag: 0, number: 0 }; N]) }
    }

    #[inline]
    fn find(&self, hash: u64, check: impl Fn(u32) -> bool) -> Option<u32> {
        let tag = tag(hash);
        for step in 0..WINDOW {
            let slot = self.slots[(hash as usize).wrapping_add(step) % N];
            if slot.tag == tag && check(slot.number) {
                return Some(slot.number);
            }
            if slot.tag == 0 {
                return None;
            }
        }
        None
    }

    /// Takes the place of the same hash, of an entry that is gone, or of the oldest one in the window.
    fn insert(&mut self, hash: u64, number: u32, next: u32, live: usize) {
        let tag = tag(hash);
        let (mut place, mut greatest) = (hash as usize % N, 0);
        for step in 0..WINDOW {
            let at = (hash as usize).wrapping_add(step) % N;
            let slot = self.slots[at];
            let age = next.wrapping_sub(slot.number) as usize;
            if slot.tag == tag || slot.tag == 0 || age > live {
                place = at;
                break;
            }
            if age > greatest {
                (place, greatest) = (at, age);
            }
        }
        self.slots[place] = Slot { tag, number };
    }
}

#[inline]
fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32 | 1
}
