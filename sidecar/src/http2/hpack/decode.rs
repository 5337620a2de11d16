//! Reading a field block (RFC 7541 sections 3 and 6).

use super::{
    DEFAULT_TABLE_SIZE, Decoded, Error, Field, huffman, integer,
    table::{Content, Name, Table, entry_size},
};

/// Scratch of more than this is given back after the field.
const SCRATCH: usize = 1024;

/// Where decoded fields go: a closure, or the message that they become.
pub trait Take {
    /// The next field of the list. Worth `#[inline(always)]`: it is called in a place of its own for each kind of field,
    /// where the others fall away.
    fn take(&mut self, field: Field);
}

impl<F: FnMut(Field)> Take for F {
    #[inline(always)]
    fn take(&mut self, field: Field) {
        self(field);
    }
}

/// What a connection remembers of the fields that were received on it.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// The largest table that the peer may ask for at present.
    limit: usize,
    /// What we announced.
    announced: usize,
    /// Where Huffman codes are decoded to.
    scratch: Vec<u8>,
}

impl Decoder {
    /// A decoder that announces `max_table_size` as its SETTINGS_HEADER_TABLE_SIZE.
    ///
    /// Until the peer acknowledges the SETTINGS ([`Self::acknowledged`]) it may use the default size, even if that is
    /// more.
    pub fn new(max_table_size: usize) -> Self {
        Self {
            table: Table::new(DEFAULT_TABLE_SIZE),
            limit: max_table_size.max(DEFAULT_TABLE_SIZE),
            announced: max_table_size,
            scratch: Vec::new(),
        }
    }

    /// The peer has acknowledged our SETTINGS: if they reduce the table, its next block must (RFC 9113 section 4.3.1).
    pub fn acknowledged(&mut self) {
        self.limit = self.announced;
    }

    /// Decodes one whole field block and hands its fields to `take` in their order.
    ///
    /// A list may count `max_list` (SETTINGS_MAX_HEADER_LIST_SIZE: names and values, and 32 for each field). Beyond it,
    /// decoding goes on only to keep the table in step. After an error the decoder is of no further use.
    pub fn decode(&mut self, block: &[u8], max_list: usize, take: &mut impl Take) -> Result<Decoded, Error> {
        let mut rest = self.size_updates(block)?;
        let mut decoded = Decoded::default();
        while let [first, after @ ..] = rest {
            rest = after;
            if first & 0x80 != 0 {
                let entry = self.table.get(integer::read(*first, 7, &mut rest)?)?;
                decoded.size += entry.size as usize;
                if decoded.size > max_list {
                    decoded.too_large = true;
                } else if !hand_out(&entry.content, take) {
                    decoded.malformed = true;
                }
            } else {
                match self.literal(*first, &mut rest, max_list, &mut decoded)? {
                    Some(Content::Field(field)) => take.take(field),
                    Some(Content::Malformed(_)) => decoded.malformed = true,
                    None => decoded.too_large = true,
                }
            }
        }
        Ok(decoded)
    }

    /// The changes of the table's size that a block begins with (RFC 7541 sections 4.2 and 6.3).
    #[inline]
    fn size_updates<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], Error> {
        let mut rest = block;
        while let [first, after @ ..] = rest
            && first & 0xe0 == 0x20
        {
            rest = after;
            let size = integer::read(*first, 5, &mut rest)?;
            if size > self.limit {
                return Err(Error::TableSize);
            }
            self.table.set_max(size);
        }
        if self.table.max() > self.limit { Err(Error::MissingTableSize) } else { Ok(rest) }
    }

    /// A literal field (RFC 7541 section 6.2); none where it lies beyond the bound.
    fn literal(
        &mut self,
        first: u8,
        rest: &mut &[u8],
        max_list: usize,
        decoded: &mut Decoded,
    ) -> Result<Option<Content>, Error> {
        let (bits, indexed, sensitive) = match first >> 4 {
            0b0100.. => (6, true, false),
            0b0010.. => return Err(Error::TableSize),
            0b0001 => (4, false, true),
            _ => (4, false, false),
        };
        let name = match integer::read(first, bits, rest)? {
            0 => Name::parse(string(rest, &mut self.scratch)?),
            index => self.table.get(index)?.name(),
        };
        let value = string(rest, &mut self.scratch)?;
        let size = entry_size(name.len(), value.len());
        decoded.size += size;
        let beyond = decoded.size > max_list;
        if beyond && !indexed {
            return Ok(None);
        }
        let content = Content::parse(name, value, sensitive);
        if indexed {
            self.table.insert(&content, size);
        }
        self.scratch.shrink_to(SCRATCH);
        Ok((!beyond).then_some(content))
    }

    /// The dynamic table's size and its entries, the newest first.
    #[cfg(test)]
    pub(super) fn table(&self) -> &Table {
        &self.table
    }
}

/// Gives a copy of a stored field to `take`, unless it is malformed. One call for each kind: so the choice between them
/// is made once.
#[inline(always)]
fn hand_out(content: &Content, take: &mut impl Take) -> bool {
    match content {
        Content::Field(Field::Header(name, value)) => take.take(Field::Header(name.clone(), value.clone())),
        Content::Field(Field::Method(method)) => take.take(Field::Method(method.clone())),
        Content::Field(Field::Scheme(scheme)) => take.take(Field::Scheme(scheme.clone())),
        Content::Field(Field::Authority(authority)) => take.take(Field::Authority(authority.clone())),
        Content::Field(Field::Path(path)) => take.take(Field::Path(path.clone())),
        Content::Field(Field::Protocol(protocol)) => take.take(Field::Protocol(protocol.clone())),
        Content::Field(Field::Status(status)) => take.take(Field::Status(*status)),
        Content::Malformed(_) => return false,
    }
    true
}

/// A string (RFC 7541 section 5.2): a piece of the block, or decoded into `scratch`.
fn string<'b: 's, 's>(rest: &mut &'b [u8], scratch: &'s mut Vec<u8>) -> Result<&'s [u8], Error> {
    let [first, after @ ..] = *rest else { return Err(Error::Truncated) };
    *rest = after;
    let length = integer::read(*first, 7, rest)?;
    let (string, after) = rest.split_at_checked(length).ok_or(Error::Truncated)?;
    *rest = after;
    if first & 0x80 == 0 {
        return Ok(string);
    }
    huffman::decode(string, scratch)?;
    Ok(scratch)
}
