//! The messages of protocol version 1, borrowed from their frame.

use super::cursor::{Cursor, Flaw, Malformed};
use crate::lsn::Lsn;

/// The version of the `pgoutput` protocol that is spoken (`proto_version`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ProtocolVersion {
    /// Whole transactions, sent once they have committed: every server from PostgreSQL 10 on.
    V1,
}

impl ProtocolVersion {
    /// The number in `START_REPLICATION`.
    pub fn number(self) -> u32 {
        match self {
            ProtocolVersion::V1 => 1,
        }
    }
}

/// One message of the output plugin.
#[derive(Debug)]
pub enum Message<'a> {
    /// `B`: a transaction begins.
    Begin(Begin),
    /// `C`: it has committed.
    Commit(Commit),
    /// `O`: it came to the server by replication.
    Origin(Origin<'a>),
    /// `R`: a table, before its first change and after each change of its definition.
    Relation(Relation<'a>),
    /// `Y`: a type that is not built in.
    Type(TypeName<'a>),
    /// `I`: a new row.
    Insert(RowChange<'a>),
    /// `U`: a changed row.
    Update(RowChange<'a>),
    /// `D`: a removed row.
    Delete(RowChange<'a>),
    /// `T`: emptied tables.
    Truncate(Truncate<'a>),
    /// `M`: a logical message.
    Logical(LogicalMessage<'a>),
}

/// `B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// the LSN of the commit record, the same as [`Commit::commit_lsn`]
    pub final_lsn: Lsn,
    /// commit time, in µs since 2000-01-01 UTC
    pub commit_time: i64,
    /// transaction id
    pub xid: u32,
}

/// `C`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// the LSN of the commit record
    pub commit_lsn: Lsn,
    /// the first byte after the commit record: where to resume
    pub end_lsn: Lsn,
    /// commit time, in µs since 2000-01-01 UTC
    pub commit_time: i64,
}

impl Begin {
    /// Reads a message whose tag is that of a Begin.
    #[inline]
    pub(super) fn parse(message: &[u8]) -> Result<Begin, Malformed> {
        let mut cursor = Cursor::from(message, 1);
        let begin = Begin {
            final_lsn: Lsn(cursor.u64("final LSN")?),
            commit_time: cursor.i64("commit time")?,
            xid: cursor.u32("transaction id")?,
        };
        cursor.end()?;
        Ok(begin)
    }
}

impl Commit {
    /// Reads a message whose tag is that of a Commit.
    #[inline]
    pub(super) fn parse(message: &[u8]) -> Result<Commit, Malformed> {
        Self::fields(Cursor::from(message, 1))
    }

    /// Reads a message whose tag is that of a Stream Commit, of version 2: the same behind the transaction's id.
    pub(super) fn parse_streamed(message: &[u8]) -> Result<Commit, Malformed> {
        let mut cursor = Cursor::from(message, 1);
        cursor.u32("transaction id")?;
        Self::fields(cursor)
    }

    #[inline]
    fn fields(mut cursor: Cursor<'_>) -> Result<Commit, Malformed> {
        // "Currently unused": a flag that is set means something we do not know.
        let flags = cursor.u8("commit flags")?;
        if flags != 0 {
            return Err(cursor.unknown("commit flags", flags));
        }
        let commit = Commit {
            commit_lsn: Lsn(cursor.u64("commit LSN")?),
            end_lsn: Lsn(cursor.u64("end LSN")?),
            commit_time: cursor.i64("commit time")?,
        };
        cursor.end()?;
        Ok(commit)
    }
}

/// `O`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// the LSN of the commit on the origin
    pub commit_lsn: Lsn,
    /// the name of the origin
    pub name: &'a str,
}

/// `R`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation<'a> {
    /// the OID of the table
    pub id: u32,
    /// its schema
    pub namespace: &'a str,
    /// its name
    pub name: &'a str,
    /// `relreplident`: `d`, `n`, `f` or `i`
    pub replica_identity: u8,
    /// the published columns, in the order of their numbers
    pub columns: Vec<Column<'a>>,
}

/// A column of a [`Relation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column<'a> {
    /// whether it is part of the replica identity
    pub key: bool,
    /// its name
    pub name: &'a str,
    /// the OID of its type
    pub type_oid: u32,
    /// the modifier of its type, -1 without one
    pub type_modifier: i32,
}

/// `Y`. For a domain, the name is that of its base type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeName<'a> {
    /// the OID of the type
    pub oid: u32,
    /// its schema
    pub namespace: &'a str,
    /// its name
    pub name: &'a str,
}

/// `I`, `U` or `D`: the tuples have not been read yet.
#[derive(Clone, Copy, Debug)]
pub struct RowChange<'a> {
    /// the OID of the table
    pub relation: u32,
    /// all of it: it is read as a whole
    pub(super) message: &'a [u8],
}

impl<'a> RowChange<'a> {
    /// Where the first tuple's marker is: after tag and relation.
    pub(super) const TUPLES_AT: usize = 5;

    /// Reads a message whose tag is that of a row change.
    #[inline(always)]
    pub(super) fn parse(message: &'a [u8]) -> Result<RowChange<'a>, Malformed> {
        match message {
            [_, a, b, c, d, ..] => Ok(RowChange {
                relation: u32::from_be_bytes([*a, *b, *c, *d]),
                message,
            }),
            _ => Err(Cursor::from(message, 1).malformed(Flaw::Short("relation id"))),
        }
    }
}

/// `T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncate<'a> {
    /// whether `CASCADE` was said
    pub cascade: bool,
    /// whether `RESTART IDENTITY` was said
    pub restart_identity: bool,
    ids: &'a [u8],
}

impl Truncate<'_> {
    /// The OIDs of the tables.
    pub fn relations(&self) -> impl Iterator<Item = u32> {
        self.ids.as_chunks().0.iter().map(|id| u32::from_be_bytes(*id))
    }
}

/// `M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    /// whether it belongs to the transaction; otherwise it is sent at once, in a transaction or outside
    pub transactional: bool,
    /// the LSN of the message
    pub lsn: Lsn,
    /// its prefix
    pub prefix: &'a str,
    /// its content
    pub content: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads one message. The tuples of a row change are left to whoever knows the relation.
    ///
    /// # Errors
    /// When the bytes are not a message of this version.
    #[inline]
    pub fn parse(version: ProtocolVersion, bytes: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let ProtocolVersion::V1 = version;
        match bytes {
            [b'I', ..] => RowChange::parse(bytes).map(Message::Insert),
            [b'U', ..] => RowChange::parse(bytes).map(Message::Update),
            [b'D', ..] => RowChange::parse(bytes).map(Message::Delete),
            _ => parse_other(bytes),
        }
    }
}

fn parse_other(bytes: &[u8]) -> Result<Message<'_>, Malformed> {
    let mut cursor = Cursor::new(bytes);
    let message = match cursor.u8("message tag")? {
        b'B' => return Begin::parse(bytes).map(Message::Begin),
        b'C' => return Commit::parse(bytes).map(Message::Commit),
        b'O' => Message::Origin(Origin {
            commit_lsn: Lsn(cursor.u64("origin LSN")?),
            name: cursor.text("origin name")?,
        }),
        b'R' => Message::Relation(relation(&mut cursor)?),
        b'Y' => Message::Type(TypeName {
            oid: cursor.u32("type OID")?,
            namespace: schema_name(&mut cursor)?,
            name: cursor.text("type name")?,
        }),
        b'T' => Message::Truncate(truncate(&mut cursor)?),
        b'M' => Message::Logical(logical_message(&mut cursor)?),
        tag => {
            return Err(Malformed {
                at: 0,
                flaw: Flaw::UnknownTag(tag),
            });
        }
    };
    cursor.end()?;
    Ok(message)
}

/// The name of a schema; an empty one stands for `pg_catalog`.
fn schema_name<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, Malformed> {
    let name = cursor.text("schema name")?;
    Ok(if name.is_empty() { "pg_catalog" } else { name })
}

/// The fewest bytes a column of a Relation message can have.
const MIN_COLUMN_BYTES: usize = 1 + 1 + 4 + 4;

fn relation<'a>(cursor: &mut Cursor<'a>) -> Result<Relation<'a>, Malformed> {
    let id = cursor.u32("relation id")?;
    let namespace = schema_name(cursor)?;
    let name = cursor.text("relation name")?;
    let replica_identity = cursor.u8("replica identity")?;
    if !matches!(replica_identity, b'd' | b'n' | b'f' | b'i') {
        return Err(cursor.unknown("replica identity", replica_identity));
    }
    let count = usize::from(cursor.u16("number of columns")?);
    if count * MIN_COLUMN_BYTES > cursor.left() {
        return Err(cursor.malformed(Flaw::Count { of: "columns", count }));
    }
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        columns.push(Column {
            key: cursor.u8("column flags")? & 1 != 0,
            name: cursor.text("column name")?,
            type_oid: cursor.u32("column type")?,
            type_modifier: cursor.i32("type modifier")?,
        });
    }
    Ok(Relation {
        id,
        namespace,
        name,
        replica_identity,
        columns,
    })
}

fn truncate<'a>(cursor: &mut Cursor<'a>) -> Result<Truncate<'a>, Malformed> {
    let count = cursor.u32("number of relations")? as usize;
    let options = cursor.u8("truncate options")?;
    if options & !3 != 0 {
        return Err(cursor.unknown("truncate options", options));
    }
    let ids = count
        .checked_mul(4)
        .filter(|bytes| *bytes <= cursor.left())
        .ok_or_else(|| {
            cursor.malformed(Flaw::Count {
                of: "relations",
                count,
            })
        })?;
    Ok(Truncate {
        cascade: options & 1 != 0,
        restart_identity: options & 2 != 0,
        ids: cursor.take(ids, "relation ids")?,
    })
}

fn logical_message<'a>(cursor: &mut Cursor<'a>) -> Result<LogicalMessage<'a>, Malformed> {
    let flags = cursor.u8("message flags")?;
    if flags & !1 != 0 {
        return Err(cursor.unknown("message flags", flags));
    }
    let lsn = Lsn(cursor.u64("message LSN")?);
    let prefix = cursor.text("message prefix")?;
    let length = cursor.u32("message length")? as usize;
    Ok(LogicalMessage {
        transactional: flags & 1 != 0,
        lsn,
        prefix,
        content: cursor.take(length, "message content")?,
    })
}
