//! Bodies as they arrive, good and bad.

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

fn check(text: &str, expected: &Expect) {
    let shown = match parse_body(text.as_bytes()) {
        Ok(value) => value.to_string(),
        Err(error) => format!("error: {error}"),
    };
    expected.assert_eq(&shown);
}

#[test]
fn what_az_sends() {
    let body = "{\"properties\": {\"parameters\": {\"a\": {\"value\": 1}}, \"mode\": \"Incremental\", template:{\n  // mine\n  \
                \"$schema\": \"https://x\", /* two\n lines */ 'resources': [ 1.5, -2e3, ],\n  \"text\": \"one\ntwo\", un-quoted: \
                null,\n}}}";
    check(
        body,
        &expect![[
            r#"{"properties":{"mode":"Incremental","parameters":{"a":{"value":1}},"template":{"$schema":"https://x","resources":[1.5,-2000.0],"text":"one\ntwo","un-quoted":null}}}"#
        ]],
    );
}

#[test]
fn escapes() {
    check(r#""\"\\\/\b\f\n\r\t\u0041\ud83d\ude00\ud83dx\'""#, &expect![[r#""\"\\/\b\f\n\r\tA😀�x'""#]]);
}

#[test]
fn complaints_name_the_position() {
    check("", &expect!["error: a value is expected, found end of the text, line 1, column 1"]);
    check("{\"a\": 1,\n \"a\": 2}", &expect!["error: `a` is given twice, line 2, column 2"]);
    check("{\"a\" 1}", &expect!["error: `:` is expected after `a`, found `1`, line 1, column 6"]);
    check("[1 2]", &expect!["error: `,` or `]` is expected, found `2`, line 1, column 4"]);
    check("[1,,2]", &expect!["error: a value is expected, found `,`, line 1, column 4"]);
    check("{a: yes}", &expect!["error: `yes` is no value; write strings in quotes, line 1, column 5"]);
    check("{a: 1-2}", &expect!["error: `1-2` is not a number, line 1, column 5"]);
    check("{a: 01}", &expect!["error: `01` is not a number, line 1, column 5"]);
    check("{a: 'x}", &expect!["error: a string without its closing quote, line 1, column 5"]);
    check("{a: '\\q'}", &expect!["error: `\\q` is not an escape, line 1, column 6"]);
    check("{a: '\\u12é'}", &expect!["error: `\\u` needs four hexadecimal digits, line 1, column 6"]);
    check("{} /* open", &expect!["error: a comment `/*` without its `*/`, line 1, column 4"]);
    check("{} é", &expect!["error: unexpected `é` after the end of the value, line 1, column 4"]);
    check("{,}", &expect!["error: a key is expected, found `,`, line 1, column 2"]);
    let error = parse_body(b"{\n\"a\": \"\xff\"}").unwrap_err();
    expect!["the text is not UTF-8, line 2, column 7"].assert_eq(&error.to_string());
}

#[test]
fn what_is_printed_is_read_as_the_same() {
    for text in ["[1666666666676666666666666666666666666666666666]", "[0.1, -0.0, 1e300, 18446744073709551615]"] {
        let value = parse_body(text.as_bytes()).unwrap();
        assert_eq!(parse_body(value.to_string().as_bytes()).unwrap(), value);
    }
}

#[test]
fn nesting_is_bounded() {
    assert!(parse_body("[".repeat(64).as_bytes()).unwrap_err().message.contains("end of the text"));
    check(&"[".repeat(1_000_000), &expect!["error: nested deeper than 64 levels, line 1, column 65"]);
}

#[test]
fn a_path_has_a_place() {
    let body = "{properties: {mode: 1,\n template: {\n  resources: [\n   {name: 'a'},\n   {name: 'b',\n    properties: {x: [1,\n 2]}}]}}}";
    let line = |path: &str| locate(body.as_bytes(), "properties.template", path).map(|at| (at.line, at.column));
    assert_eq!(line(""), Some((1, 12)));
    assert_eq!(line("resources[1].name"), Some((4, 11)));
    assert_eq!(line("Resources[1].properties.x[1]"), Some((6, 2)));
    assert_eq!(line("resources[1].properties.missing.deep"), Some((5, 17)));
    assert_eq!(line("resources[10]"), Some((2, 14)));
    assert_eq!(locate(body.as_bytes(), "nothing", "a"), None);
}

proptest! {
    /// Whatever JSON says is said here too.
    #[test]
    fn json_is_understood(text in "[\\[\\]{}:, \"'a1.e\\-\\\\/*\n]{0,40}") {
        if let Ok(value) = serde_json::from_str::<Value>(&text)
            && let Ok(ours) = parse_body(text.as_bytes())
        {
            // numbers may differ in the last digit, which serde_json drops
            let digits = |value: &Value| value.to_string().chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
            prop_assert_eq!(digits(&value), digits(&ours));
        }
    }
}
