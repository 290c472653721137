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
    walk_table(table.get_ref(), "", &mut |span, key| {
        nearest.look(span, key)
    });
    nearest.found.map(|(_, key)| key).unwrap_or_default()
}

/// The line and the key of a place, or of the key `beside` in the same table, if there is one.
pub(super) fn find(text: &str, span: &Span, beside: &str) -> (usize, String) {
    let here = (line(text, span.start), key(text, span));
    let Some((table, _)) = here.1.rsplit_once('.').filter(|_| !beside.is_empty()) else {
        return here;
    };
    let wanted = format!("{table}.{beside}");
    let Ok(file) = DeTable::parse(text) else {
        return here;
    };
    let mut named = Named {
        wanted: &wanted,
        found: None,
    };
    walk_table(file.get_ref(), "", &mut |span, key| named.look(span, key));
    match named.found {
        Some(start) => (line(text, start), wanted),
        None => here,
    }
}

/// Where a key is.
struct Named<'a> {
    wanted: &'a str,
    found: Option<usize>,
}

impl Named<'_> {
    fn look(&mut self, span: Span, key: &str) {
        if key == self.wanted && self.found.is_none() {
            self.found = Some(span.start);
        }
    }
}

// Deep nesting is refused by the parser, so these come to an end.
fn walk_table(table: &DeTable<'_>, prefix: &str, look: &mut dyn FnMut(Span, &str)) {
    for (name, value) in table {
        let key = match prefix {
            "" => name.get_ref().to_string(),
            _ => format!("{prefix}.{}", name.get_ref()),
        };
        look(name.span(), &key);
        walk_value(value, &key, look);
    }
}

fn walk_value(value: &Spanned<DeValue<'_>>, key: &str, look: &mut dyn FnMut(Span, &str)) {
    look(value.span(), key);
    match value.get_ref() {
        DeValue::Table(table) => walk_table(table, key, look),
        DeValue::Array(array) => {
            for (number, value) in array.iter().enumerate() {
                walk_value(value, &format!("{key}[{number}]"), look);
            }
        }
        _ => {}
    }
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
}
