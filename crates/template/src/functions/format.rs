//! .NET's composite formatting, the part that templates use: `{0}`, `{0,8}`, `{0:N2}`, `{0:x8}`, `{0:000}`.

use serde_json::Value;

use super::convert::scalar_text;
use super::strings::WIDTH_MAX;
use crate::meter::{Fault, Meter};

/// Most digits after the point or before it that a format asks for.
const DIGITS_MAX: usize = 99;

/// The format string with its items filled in. `fault` makes a complaint about the call.
pub(super) fn compose(
    format: &str,
    values: &[&Value],
    meter: &Meter<'_>,
    fault: impl Fn(String) -> Fault,
) -> Result<String, Fault> {
    let mut text = String::new();
    let mut rest = format;
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            text.push_str(brace);
            rest = after;
            continue;
        }
        let end = rest.find('}').filter(|_| brace == "{");
        let Some(end) = end else {
            return Err(fault(format!("the format string has a `{brace}` without its pair; write `{brace}{brace}`")));
        };
        let item = item(&rest[..end], values).map_err(&fault)?;
        meter.step(1)?;
        meter.bytes(item.len())?;
        text.push_str(&item);
        rest = &rest[end + 1..];
    }
    text.push_str(rest);
    Ok(text)
}

/// One `index[,alignment][:format]`.
fn item(spec: &str, values: &[&Value]) -> Result<String, String> {
    let (head, format) = spec.split_once(':').map_or((spec, ""), |(head, format)| (head, format));
    let (index, alignment) = head.split_once(',').map_or((head, ""), |(index, alignment)| (index, alignment));
    let wrong = || format!("`{{{spec}}}` is not an item; write {{0}}, {{0,10}} or {{0:N2}}");
    let index: usize = index.trim().parse().map_err(|_| wrong())?;
    let value = values
        .get(index)
        .ok_or_else(|| format!("the format string asks for argument {index}, and there are {}", values.len()))?;
    let text = formatted(value, format.trim())?;
    if alignment.is_empty() {
        return Ok(text);
    }
    let width: i64 = alignment.trim().parse().map_err(|_| wrong())?;
    let size = usize::try_from(width.unsigned_abs()).ok().filter(|size| *size <= WIDTH_MAX);
    let size = size.ok_or_else(|| format!("an alignment may be at most {WIDTH_MAX}"))?;
    Ok(if width < 0 { format!("{text:<size$}") } else { format!("{text:>size$}") })
}

fn formatted(value: &Value, format: &str) -> Result<String, String> {
    match value {
        Value::Number(number) if !format.is_empty() => match number.as_i64() {
            Some(integer) => integer_as(integer, format),
            None => float_as(number.as_f64().unwrap_or_default(), format),
        },
        Value::Null => Ok(String::new()),
        value => Ok(scalar_text(value).map_or_else(|| value.to_string(), std::borrow::Cow::into_owned)),
    }
}

/// A letter and a count: `N2`, `x8`, `D`.
fn standard(format: &str) -> Option<(char, Option<usize>)> {
    let mut letters = format.chars();
    let letter = letters.next().filter(char::is_ascii_alphabetic)?;
    let digits = letters.as_str();
    if digits.is_empty() {
        return Some((letter, None));
    }
    digits.parse().ok().filter(|digits| *digits <= DIGITS_MAX).map(|digits| (letter, Some(digits)))
}

fn integer_as(number: i64, format: &str) -> Result<String, String> {
    let Some((letter, digits)) = standard(format) else { return custom(&number.to_string(), format) };
    let width = digits.unwrap_or(0);
    let sign = if number < 0 { "-" } else { "" };
    Ok(match letter {
        'D' | 'd' => format!("{sign}{:0>width$}", number.unsigned_abs().to_string()),
        'X' => format!("{number:0>width$X}"),
        'x' => format!("{number:0>width$x}"),
        'B' | 'b' => format!("{number:0>width$b}"),
        'G' | 'g' => number.to_string(),
        'N' | 'n' => {
            format!("{sign}{}{}", grouped(&number.unsigned_abs().to_string()), fraction("", digits.unwrap_or(2)))
        }
        'F' | 'f' => format!("{number}{}", fraction("", digits.unwrap_or(2))),
        #[expect(clippy::cast_precision_loss, reason = "fifteen digits are what these formats show")]
        _ => return float_as(number as f64, format),
    })
}

fn float_as(number: f64, format: &str) -> Result<String, String> {
    let Some((letter, digits)) = standard(format) else {
        let places = format.split_once('.').map_or(0, |(_, after)| after.matches(['0', '#']).count().min(DIGITS_MAX));
        return custom(&format!("{number:.places$}"), format);
    };
    let places = digits.unwrap_or(2);
    Ok(match letter {
        'N' | 'n' => {
            let text = format!("{:.places$}", number.abs());
            let (whole, after) = text.split_once('.').unwrap_or((&text, ""));
            format!("{}{}{}", if number < 0.0 { "-" } else { "" }, grouped(whole), fraction(after, places))
        }
        'F' | 'f' => format!("{number:.places$}"),
        'P' | 'p' => format!("{} %", float_as(number * 100.0, &format!("N{places}"))?),
        'E' | 'e' => {
            let places = digits.unwrap_or(6);
            let text = format!("{number:.places$e}");
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let exponent: i32 = exponent.parse().unwrap_or(0);
            format!("{mantissa}{letter}{}{:03}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        'G' | 'g' | 'R' | 'r' => number.to_string(),
        _ => return Err(format!("`{format}` is not a format for a number; write N2, D4, X8, F1, P0 or 000.00")),
    })
}

/// `.` and exactly `places` digits; nothing for no places.
fn fraction(digits: &str, places: usize) -> String {
    if places == 0 { String::new() } else { format!(".{digits:0<places$}") }
}

/// Digits with a comma between thousands.
fn grouped(digits: &str) -> String {
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A custom format of `0`, `#`, `,` and `.`, with text around it.
fn custom(number: &str, format: &str) -> Result<String, String> {
    let is_digit = |c: char| matches!(c, '0' | '#' | ',' | '.');
    let Some(start) = format.find(is_digit) else { return Ok(format.to_owned()) };
    let end = format.rfind(is_digit).map_or(start, |end| end + 1);
    let picture = &format[start..end];
    if picture.chars().any(|c| !is_digit(c)) || picture.len() > DIGITS_MAX {
        return Err(format!("`{format}` is not a format for a number; write N2, D4, X8, F1, P0 or 000.00"));
    }
    let (before, after) = picture.split_once('.').unwrap_or((picture, ""));
    let (sign, digits) = number.strip_prefix('-').map_or(("", number), |digits| ("-", digits));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let least = before.matches('0').count();
    let whole = whole.trim_start_matches('0');
    let mut text = format!("{whole:0>least$}");
    if before.contains(',') {
        text = grouped(&text);
    }
    let least_after = after.rfind('0').map_or(0, |at| after[..=at].matches(['0', '#']).count());
    let kept = part.trim_end_matches('0');
    let kept = if kept.len() < least_after { format!("{kept:0<least_after$}") } else { kept.to_owned() };
    let point = if kept.is_empty() { "" } else { "." };
    Ok(format!("{}{sign}{text}{point}{kept}{}", &format[..start], &format[end..]))
}
