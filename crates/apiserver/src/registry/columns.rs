//! Columns of server-side tables.

use jiff::Timestamp;
use serde_json::Value;

use super::cells::Cell;
use crate::{json, jsonpath::JsonPath};

#[derive(Debug)]
pub struct Column {
    pub name: String,
    /// OpenAPI type, or `date`.
    pub kind: String,
    pub format: String,
    pub description: String,
    /// 0 is shown always, more in wide output.
    pub priority: u32,
    pub source: Source,
}

#[derive(Debug)]
pub enum Source {
    Name,
    Age,
    Path(JsonPath),
    Cell(Cell),
}

impl Column {
    /// The cell for an object.
    pub fn cell(&self, object: &Value, now: Timestamp) -> Value {
        match &self.source {
            Source::Name => Value::from(json::text(object, &["metadata", "name"])),
            Source::Age => Value::from(age(
                json::text(object, &["metadata", "creationTimestamp"]),
                now,
            )),
            Source::Cell(cell) => cell(object, now),
            Source::Path(path) => {
                let found = path.find(object);
                let found = match found.as_slice() {
                    [] => return Value::Null,
                    [one] => (*one).clone(),
                    many => Value::Array(many.iter().map(|value| (*value).clone()).collect()),
                };
                self.typed(found, now)
            }
        }
    }

    fn typed(&self, value: Value, now: Timestamp) -> Value {
        match (self.kind.as_str(), value) {
            (_, Value::Null) => Value::Null,
            ("date", Value::String(time)) => Value::from(age(&time, now)),
            ("integer" | "number", value @ Value::Number(_))
            | ("boolean", value @ Value::Bool(_))
            | ("string", value @ Value::String(_)) => value,
            ("string", other) => Value::from(other.to_string()),
            _ => Value::Null,
        }
    }
}

pub fn name() -> Column {
    Column {
        name: "Name".to_owned(),
        kind: "string".to_owned(),
        format: "name".to_owned(),
        description: "The name, unique among those of its kind in its namespace".to_owned(),
        priority: 0,
        source: Source::Name,
    }
}

pub fn age_column() -> Column {
    Column {
        name: "Age".to_owned(),
        kind: "string".to_owned(),
        format: String::new(),
        description: "The time since it was made".to_owned(),
        priority: 0,
        source: Source::Age,
    }
}

/// Columns from a table row; the age comes after those that are always shown.
pub fn builtin(cells: &[(&str, Cell)], named: bool, aged: bool) -> Vec<Column> {
    let mut columns: Vec<Column> = named.then(name).into_iter().collect();
    let mut wide = Vec::new();
    for (header, cell) in cells {
        let (header, priority) = match header.strip_prefix('*') {
            Some(header) => (header, 1),
            None => (*header, 0),
        };
        let mut parts = header.splitn(3, '|').map(str::to_owned);
        let column = Column {
            name: parts.next().unwrap_or_default(),
            kind: parts.next().unwrap_or_default(),
            format: String::new(),
            description: parts.next().unwrap_or_default(),
            priority,
            source: Source::Cell(*cell),
        };
        if priority == 0 {
            columns.push(column);
        } else {
            wide.push(column);
        }
    }
    columns.extend(aged.then(age_column));
    columns.extend(wide);
    columns
}

/// The time since an RFC 3339 time, as kubectl shows it: two units at most, few digits.
pub fn age(time: &str, now: Timestamp) -> String {
    let Ok(time) = time.parse::<Timestamp>() else {
        return if time.is_empty() {
            "<unknown>".to_owned()
        } else {
            "<invalid>".to_owned()
        };
    };
    let seconds = now.as_second() - time.as_second();
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |large: i64, unit: char, small: i64, small_unit: char| {
        if small == 0 {
            format!("{large}{unit}")
        } else {
            format!("{large}{unit}{small}{small_unit}")
        }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => two(days, 'd', hours % 24, 'h'),
        () if days < 730 => format!("{days}d"),
        () if days < 365 * 8 => two(days / 365, 'y', days % 365, 'd'),
        () => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::age;
    use jiff::Timestamp;

    #[test]
    fn ages_have_the_usual_form() {
        let now = Timestamp::from_second(2_000_000_000).unwrap();
        for (seconds, expected) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (601, "10m"),
            (3 * 3600 + 60, "3h1m"),
            (8 * 3600, "8h"),
            (47 * 3600, "47h"),
            (3 * 86400 + 3600, "3d1h"),
            (100 * 86400, "100d"),
            (3 * 365 * 86400 + 86400, "3y1d"),
        ] {
            let then = Timestamp::from_second(2_000_000_000 - seconds).unwrap();
            assert_eq!(age(&then.to_string(), now), expected);
        }
        assert_eq!(age("", now), "<unknown>");
    }
}
