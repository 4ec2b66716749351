//! Published decoders, each used as its documentation says, message by message.

use cdc_benches::{Corpus, Totals};

/// elefant-client: borrowed texts, checked for UTF-8; one vector a row.
pub(crate) fn elefant_client(corpus: &Corpus) -> Totals {
    use elefant_client::replication::{PgOutputMessage, TupleColumn, parse_pgoutput_message};
    let mut totals = Totals::default();
    for message in &corpus.messages {
        let new = match parse_pgoutput_message(message).unwrap() {
            PgOutputMessage::Insert(insert) => insert.tuple,
            PgOutputMessage::Update(update) => update.new_tuple,
            _ => continue,
        };
        totals.rows += 1;
        for column in &new.columns {
            totals.column(match column {
                TupleColumn::Text(text) => Some(text.as_bytes()),
                TupleColumn::Binary(bytes) => Some(bytes),
                _ => None,
            });
        }
    }
    totals
}

/// pgsync-postgres: columns are counted references into the message; one vector a row.
pub(crate) fn pgsync_postgres(corpus: &Corpus) -> Totals {
    use pgsync_core::event::Value;
    use pgsync_postgres::replication::pgoutput::{LogicalMessage, decode_logical};
    let mut totals = Totals::default();
    for message in &corpus.messages {
        let new = match decode_logical(message.clone()).unwrap() {
            LogicalMessage::Insert { new, .. } | LogicalMessage::Update { new, .. } => new,
            _ => continue,
        };
        totals.rows += 1;
        for value in &new.values {
            totals.column(match value {
                Value::Text(bytes) | Value::Binary(bytes) => Some(bytes),
                _ => None,
            });
        }
    }
    totals
}

/// pg_walstream, its parser: counted references, sixteen columns in place.
pub(crate) fn pg_walstream_parser(corpus: &Corpus) -> Totals {
    use pg_walstream::{LogicalReplicationMessage, LogicalReplicationParser};
    let mut parser = LogicalReplicationParser::with_protocol_version(1);
    let mut totals = Totals::default();
    for message in &corpus.messages {
        let parsed = parser.parse_wal_message_bytes(message.clone()).unwrap();
        let new = match parsed.message {
            LogicalReplicationMessage::Insert { tuple, .. } => tuple,
            LogicalReplicationMessage::Update { new_tuple, .. } => new_tuple,
            _ => continue,
        };
        totals.rows += 1;
        for column in &new.columns {
            let valued = column.is_text() || column.is_binary();
            totals.column(valued.then(|| column.as_bytes()));
        }
    }
    totals
}

/// pg_walstream, the events that its stream hands to users: named values. What is unchanged is not in them.
pub(crate) fn pg_walstream_events(corpus: &Corpus) -> Totals {
    use pg_walstream::{ColumnValue, EventType, Lsn, PgOutputDecoder};
    let mut decoder = PgOutputDecoder::with_protocol_version(1);
    let mut totals = Totals::default();
    for message in &corpus.messages {
        let event = decoder.decode_message(message.clone(), Lsn::new(1)).unwrap();
        let new = match event.map(|event| event.event_type) {
            Some(EventType::Insert { data, .. }) => data,
            Some(EventType::Update { new_data, .. }) => new_data,
            _ => continue,
        };
        totals.rows += 1;
        for (_, value) in new.iter() {
            totals.column(match value {
                ColumnValue::Text(bytes) | ColumnValue::Binary(bytes) => Some(bytes),
                ColumnValue::Null => None,
            });
        }
    }
    totals
}

/// pgoutput: a `String` a column.
pub(crate) fn pgoutput(corpus: &Corpus) -> Totals {
    use pgoutput::events::base::event::BaseEvent;
    use pgoutput::events::base::tuple_data::TupleDataColumn;
    use pgoutput::events::event::{Event, EventType};
    use pgoutput::options::{BinaryValueTraitOff, StreamingValueTraitOff};
    let mut totals = Totals::default();
    for message in &corpus.messages {
        let (tag, body) = message.split_first().unwrap();
        let kind = EventType::from_char(*tag).unwrap();
        let event = Event::<BinaryValueTraitOff, StreamingValueTraitOff>::parse(&kind, body).unwrap();
        let new = match event {
            Event::Base(BaseEvent::Insert(insert)) => insert.data,
            Event::Base(BaseEvent::Update(update)) => update.data,
            _ => continue,
        };
        totals.rows += 1;
        for column in &new {
            totals.column(match column {
                TupleDataColumn::Value(text) => Some(text.as_bytes()),
                _ => None,
            });
        }
    }
    totals
}
