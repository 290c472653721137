//! The line and the key of a place in a file.

use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Span;

/// A key behind a line, if there is one.
pub(super) struct Behind<'a>(pub(super) &'a str);

impl fmt::Display for Behind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            key => write!(f, ": {key}"),
        }
    }
}

/// The number of the line with this byte, from 1.
pub(super) fn line(text: &str, byte: usize) -> usize {
    let before = text.as_bytes().get(..byte).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|&&byte| byte == b'\n').count()
}

/// What the file calls this place: `sensor[0].hwmon.chip`. Empty when it is nothing that has a
/// name, or when the file is no TOML.
pub(super) fn key(text: &str, span: &Span) -> String {
    let Ok(table) = DeTable::parse(text) else {
        return String::new();
    };
    let mut nearest = Nearest { span, found: None };
    nearest.table(table.get_ref(), "");
    nearest.found.map(|(_, key)| key).unwrap_or_default()
}

/// The smallest part of a file that has a place in it.
struct Nearest<'a> {
    span: &'a Span,
    found: Option<(usize, String)>,
}

impl Nearest<'_> {
    fn look(&mut self, span: Span, key: &str) {
        let within = span.start <= self.span.start && self.span.end <= span.end;
        let size = span.len();
        // Of equal ones, the deeper one comes later.
        if within && self.found.as_ref().is_none_or(|(other, _)| size <= *other) {
            self.found = Some((size, key.to_owned()));
        }
    }

    // Deep nesting is refused by the parser, so this comes to an end.
    fn table(&mut self, table: &DeTable<'_>, prefix: &str) {
        for (name, value) in table {
            let key = match prefix {
                "" => name.get_ref().to_string(),
                _ => format!("{prefix}.{}", name.get_ref()),
            };
            self.look(name.span(), &key);
            self.value(value, &key);
        }
    }

    fn value(&mut self, value: &Spanned<DeValue<'_>>, key: &str) {
        self.look(value.span(), key);
        match value.get_ref() {
            DeValue::Table(table) => self.table(table, key),
            DeValue::Array(array) => {
                for (number, value) in array.iter().enumerate() {
                    self.value(value, &format!("{key}[{number}]"));
                }
            }
            _ => {}
        }
    }
}
