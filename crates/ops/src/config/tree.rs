//! A configuration before anything is known of its keys: values, and where each of them came from.
//!
//! A file is read into a tree; environment variables then replace or add leaves. What the values
//! mean is the business of `declare`.

use std::cell::Cell;
use std::fmt;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file, with a line that counts from 1.
    Line(usize),
    /// An environment variable.
    Variable(String),
    /// The default of the key, or no value at all.
    Nowhere,
}

#[derive(Debug)]
pub struct Node {
    pub data: Data,
    pub origin: Origin,
}

#[derive(Debug)]
pub enum Data {
    Text(String),
    /// From a variable: text that is whatever the key takes.
    Loose(String),
    Integer(String),
    Float(String),
    Boolean(bool),
    Moment,
    List(Vec<Node>),
    Table(Table),
}

impl Data {
    /// What a person calls it.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Loose(_) => "a text",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Boolean(_) => "true or false",
            Self::Moment => "a date",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// Keys and values in the order they were written; what is never taken is unknown.
#[derive(Debug, Default)]
pub struct Table {
    pub slots: Vec<Slot>,
}

#[derive(Debug)]
pub struct Slot {
    pub key: String,
    /// Of the key, not of its value.
    pub origin: Origin,
    pub node: Node,
    pub taken: Cell<bool>,
}

impl Table {
    /// The value of `key`, which counts as known from now on.
    pub fn take(&self, key: &str) -> Option<&Node> {
        let slot = self.slots.iter().find(|slot| slot.key == key)?;
        slot.taken.set(true);
        Some(&slot.node)
    }

    pub fn untaken(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| !slot.taken.get())
    }

    /// Puts `text` where `path` leads, over whatever was there. Tables on the way are made.
    pub fn overlay(&mut self, path: &[String], text: &str, variable: &str) {
        let Some((first, rest)) = path.split_first() else { return };
        let origin = Origin::Variable(variable.to_owned());
        let position = match self.slots.iter().position(|slot| &slot.key == first) {
            Some(position) => position,
            None => {
                self.slots.push(Slot {
                    key: first.clone(),
                    origin: origin.clone(),
                    node: Node { data: Data::Table(Self::default()), origin: origin.clone() },
                    taken: Cell::new(false),
                });
                self.slots.len() - 1
            }
        };
        let Some(slot) = self.slots.get_mut(position) else { return };
        if rest.is_empty() {
            slot.node = Node { data: Data::Loose(text.to_owned()), origin };
            return;
        }
        // A file that has a plain value where a table belongs: the reader says so.
        if let Data::Table(table) = &mut slot.node.data {
            table.overlay(rest, text, variable);
        }
    }
}

/// A place in the text that TOML itself refuses.
pub struct Malformed {
    pub line: usize,
    pub message: String,
}

/// Reads the text of a file. All mistakes are returned, not only the first one.
pub(crate) fn parse(text: &str) -> Result<Table, Vec<Malformed>> {
    let lines = Lines::of(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors
            .iter()
            .map(|error| Malformed {
                line: error.span().map_or(1, |span| lines.at(span.start)),
                message: error.message().split('\n').collect::<Vec<_>>().join(", "),
            })
            .collect());
    }
    Ok(read_table(table.get_ref(), &lines))
}

fn read_table(table: &DeTable<'_>, lines: &Lines) -> Table {
    let mut slots: Vec<(usize, Slot)> = table
        .iter()
        .map(|(key, value)| {
            let start = key.span().start;
            let slot = Slot {
                key: key.get_ref().to_string(),
                origin: Origin::Line(lines.at(start)),
                node: read_value(value, lines),
                taken: Cell::new(false),
            };
            (start, slot)
        })
        .collect();
    slots.sort_by_key(|(start, _)| *start);
    Table { slots: slots.into_iter().map(|(_, slot)| slot).collect() }
}

fn read_value(value: &Spanned<DeValue<'_>>, lines: &Lines) -> Node {
    let data = match value.get_ref() {
        DeValue::String(text) => Data::Text(text.to_string()),
        DeValue::Integer(number) => Data::Integer(match number.radix() {
            10 => number.as_str().replace('_', ""),
            radix => u64::from_str_radix(number.as_str(), radix)
                .map_or_else(|_| number.to_string(), |number| number.to_string()),
        }),
        DeValue::Float(number) => Data::Float(number.as_str().to_owned()),
        DeValue::Boolean(value) => Data::Boolean(*value),
        DeValue::Datetime(_) => Data::Moment,
        DeValue::Array(values) => {
            Data::List(values.iter().map(|value| read_value(value, lines)).collect())
        }
        DeValue::Table(table) => Data::Table(read_table(table, lines)),
    };
    Node { data, origin: Origin::Line(lines.at(value.span().start)) }
}

/// Turns offsets into lines.
struct Lines {
    starts: Vec<usize>,
}

impl Lines {
    fn of(text: &str) -> Self {
        let mut starts = vec![0];
        starts.extend(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1));
        Self { starts }
    }

    fn at(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset).max(1)
    }
}

/// An origin as it stands in a message: "backstay.toml, line 7".
pub struct Place<'a> {
    pub origin: &'a Origin,
    pub file: Option<&'a Path>,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.origin, self.file) {
            (Origin::Line(line), Some(file)) => write!(f, "{}, line {line}", file.display()),
            (Origin::Line(line), None) => write!(f, "line {line}"),
            (Origin::Variable(name), _) => write!(f, "environment variable {name}"),
            (Origin::Nowhere, Some(file)) => write!(f, "{}", file.display()),
            (Origin::Nowhere, None) => f.write_str("configuration"),
        }
    }
}
