//! One row per call: the expression and what it gives, or its complaint.

use expect_test::{Expect, expect, expect_file};
use serde_json::{Value, json};

use crate::tests::scope;
use crate::{Known, Template};

/// Evaluates an expression as the value of an output-like parameter default or output, whichever allows it.
fn value_of(expression: &str, place: &str) -> String {
    let mut template = json!({
        "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
        "contentVersion": "1.0.0.0",
        "parameters": {"list": {"type": "array", "defaultValue": [3, 1, 2]},
                       "people": {"type": "array", "defaultValue": [
                           {"name": "Bo", "age": 3}, {"name": "Al", "age": 5}, {"name": "Cy", "age": 3}]}},
        "resources": [],
    });
    template[place] = match place {
        "outputs" => json!({"x": {"type": "object", "value": {"v": format!("[{expression}]")}}}),
        _ => json!({"x": {"type": "object", "defaultValue": {"v": format!("[{expression}]")}}}),
    };
    let result = Template::parse(&template, &Value::Null, scope()).and_then(|template| {
        if place == "parameters" {
            return Ok(template.parameters()[0].value.clone().unwrap_or_default());
        }
        match template.expand()?.evaluate_outputs(&Known::new())? {
            crate::Evaluated::Ready(outputs) => Ok(outputs["x"]["value"].clone()),
            crate::Evaluated::Needs(needs) => Ok(json!({"v": format!("{needs:?}")})),
        }
    });
    match result {
        Ok(value) => value["v"].to_string(),
        Err(errors) => errors.iter().map(|error| format!("! {}", error.message)).collect::<Vec<_>>().join("\n"),
    }
}

fn check_in(place: &str, rows: &str, expected: &Expect) {
    let shown: String = rows
        .lines()
        .map(str::trim)
        .filter(|row| !row.is_empty())
        .map(|row| format!("{row}\n    {}\n", value_of(row, place).replace('\n', "\n    ")))
        .collect();
    expected.assert_eq(&shown);
}

fn check(rows: &str, expected: &Expect) {
    check_in("outputs", rows, expected);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn arrays() {
    check(
        "array('a')
        array(parameters('list'))
        concat('a', 1, true(), '''')
        concat(createArray(1), createArray(2, 'x'))
        concat(createArray(1), 'x')
        contains('abc', 'b')
        contains(parameters('list'), 2)
        contains(createObject('Key', 1), 'kEY')
        createArray()
        empty('')
        empty(null())
        empty(createObject())
        empty(1)
        first('one')
        first(createArray())
        last(parameters('list'))
        flatten(createArray(createArray(1, 2), createArray(3)))
        indexFromEnd(parameters('list'), 1)
        indexFromEnd(parameters('list'), 4)
        tryIndexFromEnd(parameters('list'), 4)
        indexOf('testing', 'T')
        indexOf(parameters('list'), 2)
        lastIndexOf('testing', 't')
        indexOf('testing', 'x')
        intersection(createArray(1, 2, 3), createArray(3, 2))
        intersection(createObject('a', 1, 'b', 2), createObject('a', 1, 'b', 3))
        length('añ')
        length(createObject('a', 1))
        range(5, 3)
        range(0, 10001)
        range(2147483647, 2)
        skip('abcdef', 4)
        skip(parameters('list'), 1)
        take('abc', 10)
        take(parameters('list'), -1)
        union(createArray(1, 2), createArray(2, 3))
        union(createObject('a', createObject('x', 1), 'b', 1), createObject('A', createObject('y', 2)))
        union(createArray(1), createObject())",
        &expect![[r#"
            array('a')
                ["a"]
            array(parameters('list'))
                [3,1,2]
            concat('a', 1, true(), '''')
                "a1True'"
            concat(createArray(1), createArray(2, 'x'))
                [1,2,"x"]
            concat(createArray(1), 'x')
                ! unable to evaluate template language function 'concat': the argument 'more' must be an array as the first is
            contains('abc', 'b')
                true
            contains(parameters('list'), 2)
                true
            contains(createObject('Key', 1), 'kEY')
                true
            createArray()
                []
            empty('')
                true
            empty(null())
                true
            empty(createObject())
                true
            empty(1)
                ! unable to evaluate template language function 'empty': the argument 'value' must be an array, an object or a string; an integer is given
            first('one')
                "o"
            first(createArray())
                null
            last(parameters('list'))
                2
            flatten(createArray(createArray(1, 2), createArray(3)))
                [1,2,3]
            indexFromEnd(parameters('list'), 1)
                2
            indexFromEnd(parameters('list'), 4)
                ! unable to evaluate template language function 'indexFromEnd': the argument 'index' must be from 1 to 3
            tryIndexFromEnd(parameters('list'), 4)
                null
            indexOf('testing', 'T')
                0
            indexOf(parameters('list'), 2)
                2
            lastIndexOf('testing', 't')
                3
            indexOf('testing', 'x')
                -1
            intersection(createArray(1, 2, 3), createArray(3, 2))
                [2,3]
            intersection(createObject('a', 1, 'b', 2), createObject('a', 1, 'b', 3))
                {"a":1}
            length('añ')
                2
            length(createObject('a', 1))
                1
            range(5, 3)
                [5,6,7]
            range(0, 10001)
                ! unable to evaluate template language function 'range': the argument 'count' must be from 0 to 10000; 10001 is given
            range(2147483647, 2)
                ! unable to evaluate template language function 'range': the sum of start and count must be at most 2147483647
            skip('abcdef', 4)
                "ef"
            skip(parameters('list'), 1)
                [1,2]
            take('abc', 10)
                "abc"
            take(parameters('list'), -1)
                []
            union(createArray(1, 2), createArray(2, 3))
                [1,2,3]
            union(createObject('a', createObject('x', 1), 'b', 1), createObject('A', createObject('y', 2)))
                {"a":{"x":1,"y":2},"b":1}
            union(createArray(1), createObject())
                ! unable to evaluate template language function 'union': the argument 'more' must be an array as the first is
        "#]],
    );
}

#[test]
fn objects() {
    check(
        "createObject('a', 1, 'b', createArray(true()))
        createObject('a')
        createObject(1, 2)
        items(createObject('b', 2, 'a', 1))
        items('x')
        json('{\"a\": [1, null]}')
        json('{')
        json('1')
        null()
        objectKeys(createObject('b', 2, 'a', 1))
        shallowMerge(createArray(createObject('a', createObject('x', 1)), createObject('a', 2)))
        tryGet(createObject('a', createArray(1, 2)), 'A', 1)
        tryGet(createObject('a', 1), 'b', 'c')
        tryGet(createObject('a', 1), 1)
        createObject('a', createObject('b', createArray(7))).a['b'][0]
        createObject('a', 1).b
        createArray(1)[1]
        createArray(1).x",
        &expect![[r#"
            createObject('a', 1, 'b', createArray(true()))
                {"a":1,"b":[true]}
            createObject('a')
                ! unable to evaluate template language function 'createObject': keys and values must come in pairs
            createObject(1, 2)
                ! unable to evaluate template language function 'createObject': the argument 'keysAndValues' must be a string; an integer is given
            items(createObject('b', 2, 'a', 1))
                [{"key":"a","value":1},{"key":"b","value":2}]
            items('x')
                ! unable to evaluate template language function 'items': the argument 'object' must be an object; a string is given
            json('{"a": [1, null]}')
                {"a":[1,null]}
            json('{')
                ! unable to evaluate template language function 'json': the argument is not JSON of at most 64 levels; line 1, column 2
            json('1')
                1
            null()
                null
            objectKeys(createObject('b', 2, 'a', 1))
                ["a","b"]
            shallowMerge(createArray(createObject('a', createObject('x', 1)), createObject('a', 2)))
                {"a":2}
            tryGet(createObject('a', createArray(1, 2)), 'A', 1)
                2
            tryGet(createObject('a', 1), 'b', 'c')
                null
            tryGet(createObject('a', 1), 1)
                ! unable to evaluate template language function 'tryGet': the argument 'key' must be a string, the name of a property; an integer is given
            createObject('a', createObject('b', createArray(7))).a['b'][0]
                7
            createObject('a', 1).b
                ! the language expression property 'b' doesn't exist, available properties are 'a'
            createArray(1)[1]
                ! the language expression property array index '1' is out of bounds; the array has 1 items
            createArray(1).x
                ! the language expression property cannot be read: an array has no member for a string
        "#]],
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn strings() {
    check(
        "base64('one, two')
        base64ToString('b25lLCB0d28=')
        base64ToString('%')
        base64ToJson('eyJvbmUiOiAxfQ==')
        dataUri('Hello')
        dataUriToString('data:;base64,SGVsbG8=')
        dataUriToString('data:,a%20b')
        endsWith('abcdef', 'EF')
        startsWith('abcdef', 'x')
        fail('no such region')
        format('{0}, {1}. {2:N0} {2:N2} {2:x8} {2:D9}|{0,6}|{0,-6}|{3}{{}}', 'Hello', 'User', 8175133, true())
        format('{0:000} {0:#,##0.00} {0:P0} {0:F1} {0:E2} {1:0.##}', 7, 3)
        format('{2}', 1)
        format('{0', 1)
        format('{0,99999}', 1)
        guid('a', 'b')
        guid('a')
        uniqueString('a', 'b')
        uniqueString(resourceGroup().id)
        join(createArray('a', 1, true()), '-')
        padLeft(5, 4, '0')
        padLeft('abc', 2)
        padLeft('a', 3, 'xy')
        replace('a-b-c', '-', '')
        replace('abc', '', 'x')
        split('a;b,c', ';')
        split('a;b,c', createArray(';', ','))
        string(createArray(1, 'a', null()))
        string(12)
        substring('hello', 1, 3)
        substring('hello', 2)
        substring('hello', 4, 3)
        toLower('ÄB')
        toUpper('äb')
        trim('  a ')
        uri('http://contoso.org/firstpath/x', 'myscript.sh')
        uri('http://contoso.org/first/second/', '../up?q=1')
        uri('http://contoso.org', 'a')
        uriComponent('a b/ü')
        uriComponentToString('a%20b%2F%C3%BC')
        buildUri(createObject('scheme', 'https', 'host', 'x.org', 'port', 8080, 'path', 'a', 'query', '?b=1'))
        parseUri('https://x.org:81/a/b?c=d#e')
        'it''s'",
        &expect![[r#"
            base64('one, two')
                "b25lLCB0d28="
            base64ToString('b25lLCB0d28=')
                "one, two"
            base64ToString('%')
                ! unable to evaluate template language function 'base64ToString': the argument 'encoded' must be base64 of UTF-8 text; a string is given
            base64ToJson('eyJvbmUiOiAxfQ==')
                {"one":1}
            dataUri('Hello')
                "data:text/plain;charset=utf8;base64,SGVsbG8="
            dataUriToString('data:;base64,SGVsbG8=')
                "Hello"
            dataUriToString('data:,a%20b')
                "a b"
            endsWith('abcdef', 'EF')
                true
            startsWith('abcdef', 'x')
                false
            fail('no such region')
                ! no such region
            format('{0}, {1}. {2:N0} {2:N2} {2:x8} {2:D9}|{0,6}|{0,-6}|{3}{{}}', 'Hello', 'User', 8175133, true())
                "Hello, User. 8,175,133 8,175,133.00 007cbe1d 008175133| Hello|Hello |True{}"
            format('{0:000} {0:#,##0.00} {0:P0} {0:F1} {0:E2} {1:0.##}', 7, 3)
                "007 7.00 700 % 7.0 7.00E+000 3"
            format('{2}', 1)
                ! unable to evaluate template language function 'format': the format string asks for argument 2, and there are 1
            format('{0', 1)
                ! unable to evaluate template language function 'format': the format string has a `{` without its pair; write `{{`
            format('{0,99999}', 1)
                ! unable to evaluate template language function 'format': an alignment may be at most 10000
            guid('a', 'b')
                "2d796349-8c7e-55ec-9624-54ece82ed031"
            guid('a')
                "3703365d-5a9f-59b4-bca7-b9681389e4c1"
            uniqueString('a', 'b')
                "2rbwfvt5siijc"
            uniqueString(resourceGroup().id)
                "c54hzkwwlnkpg"
            join(createArray('a', 1, true()), '-')
                "a-1-True"
            padLeft(5, 4, '0')
                "0005"
            padLeft('abc', 2)
                "abc"
            padLeft('a', 3, 'xy')
                ! unable to evaluate template language function 'padLeft': the argument 'paddingCharacter' must be one character
            replace('a-b-c', '-', '')
                "abc"
            replace('abc', '', 'x')
                ! unable to evaluate template language function 'replace': the argument 'oldString' must not be empty
            split('a;b,c', ';')
                ["a","b,c"]
            split('a;b,c', createArray(';', ','))
                ["a","b","c"]
            string(createArray(1, 'a', null()))
                "[1,\"a\",null]"
            string(12)
                "12"
            substring('hello', 1, 3)
                "ell"
            substring('hello', 2)
                "llo"
            substring('hello', 4, 3)
                ! unable to evaluate template language function 'substring': the argument 'length' must be from 0 to 1; 3 is given
            toLower('ÄB')
                "äb"
            toUpper('äb')
                "ÄB"
            trim('  a ')
                "a"
            uri('http://contoso.org/firstpath/x', 'myscript.sh')
                "http://contoso.org/firstpath/myscript.sh"
            uri('http://contoso.org/first/second/', '../up?q=1')
                "http://contoso.org/first/up?q=1"
            uri('http://contoso.org', 'a')
                "http://contoso.org/a"
            uriComponent('a b/ü')
                "a%20b%2F%C3%BC"
            uriComponentToString('a%20b%2F%C3%BC')
                "a b/ü"
            buildUri(createObject('scheme', 'https', 'host', 'x.org', 'port', 8080, 'path', 'a', 'query', '?b=1'))
                "https://x.org:8080/a?b=1"
            parseUri('https://x.org:81/a/b?c=d#e')
                {"host":"x.org","path":"/a/b","port":81,"query":"?c=d","scheme":"https"}
            'it''s'
                "it's"
        "#]],
    );
}

#[test]
fn numbers() {
    check(
        "add(1, 2)
        add(9223372036854775807, 1)
        sub(3, 5)
        mul(3, -4)
        div(7, 2)
        div(1, 0)
        mod(-7, 3)
        mod(7, 0)
        min(3, 1, 2)
        max(parameters('list'))
        max(createArray())
        int('42')
        int('4x')
        float('1.5')
        bool('TRUE')
        bool(0)
        bool('x')
        add('1', 2)
        99999999999999999999",
        &expect![[r#"
            add(1, 2)
                3
            add(9223372036854775807, 1)
                ! unable to evaluate template language function 'add': the result does not fit into a 64-bit integer
            sub(3, 5)
                -2
            mul(3, -4)
                -12
            div(7, 2)
                3
            div(1, 0)
                ! unable to evaluate template language function 'div': division by zero
            mod(-7, 3)
                -1
            mod(7, 0)
                ! unable to evaluate template language function 'mod': division by zero
            min(3, 1, 2)
                1
            max(parameters('list'))
                3
            max(createArray())
                ! unable to evaluate template language function 'max': the argument 'value' must be integers, at least one; an array is given
            int('42')
                42
            int('4x')
                ! unable to evaluate template language function 'int': the argument 'value' must be the digits of a 64-bit integer; a string is given
            float('1.5')
                1.5
            bool('TRUE')
                true
            bool(0)
                false
            bool('x')
                ! unable to evaluate template language function 'bool': the argument 'value' must be `true`, `false` or an integer; a string is given
            add('1', 2)
                ! unable to evaluate template language function 'add': the argument 'a' must be an integer; a string is given
            99999999999999999999
                ! unable to parse language expression '99999999999999999999' at position 1: `99999999999999999999` is not a 64-bit integer
        "#]],
    );
}

#[test]
fn logic() {
    check(
        "and(true(), false(), fail('never'))
        or(true(), fail('never'))
        or(false(), 1)
        not(true())
        if(true(), 'a', fail('never'))
        if('true', 1, 2)
        coalesce(null(), null(), 'x', fail('never'))
        equals(createArray(1), createArray(1))
        equals('a', 'A')
        equals(1, json('1.0'))
        less('a', 'b')
        lessOrEquals(2, 2)
        greater(1, 2)
        greaterOrEquals(3, 2)
        less(1, 'a')
        less(true(), false())",
        &expect![[r#"
            and(true(), false(), fail('never'))
                false
            or(true(), fail('never'))
                true
            or(false(), 1)
                ! unable to evaluate template language function 'or': the argument 'operand' must be a boolean; an integer is given
            not(true())
                false
            if(true(), 'a', fail('never'))
                "a"
            if('true', 1, 2)
                ! unable to evaluate template language function 'if': the argument 'condition' must be a boolean; a string is given
            coalesce(null(), null(), 'x', fail('never'))
                "x"
            equals(createArray(1), createArray(1))
                true
            equals('a', 'A')
                false
            equals(1, json('1.0'))
                true
            less('a', 'b')
                true
            lessOrEquals(2, 2)
                true
            greater(1, 2)
                false
            greaterOrEquals(3, 2)
                true
            less(1, 'a')
                ! unable to evaluate template language function 'less': the argument 'b' must be a number as the first is; a string is given
            less(true(), false())
                ! unable to evaluate template language function 'less': the argument 'a' must be a number or a string; a boolean is given
        "#]],
    );
}

#[test]
fn lambdas() {
    check(
        "filter(parameters('people'), lambda('p', greater(lambdaVariables('p').age, 3)))
        filter(parameters('list'), lambda('p', 'i', less(lambdaVariables('i'), 2)))
        map(range(0, 3), lambda('i', mul(lambdaVariables('i'), 2)))
        map(parameters('people'), lambda('p', 'i', format('{0}{1}', lambdaVariables('p').name, lambdaVariables('i'))))
        map(range(0, 2), lambda('i', map(range(0, 2), lambda('j', add(lambdaVariables('i'), lambdaVariables('j'))))))
        reduce(parameters('list'), 0, lambda('sum', 'next', add(lambdaVariables('sum'), lambdaVariables('next'))))
        sort(parameters('people'), lambda('a', 'b', less(lambdaVariables('a').age, lambdaVariables('b').age)))
        toObject(parameters('people'), lambda('p', lambdaVariables('p').name), lambda('p', lambdaVariables('p').age))
        toObject(parameters('list'), lambda('p', lambdaVariables('p')))
        groupBy(parameters('people'), lambda('p', string(lambdaVariables('p').age)))
        mapValues(createObject('a', 1, 'b', 2), lambda('v', add(lambdaVariables('v'), 1)))
        map(parameters('list'), 'x')
        map('x', lambda('i', 1))
        lambda('x', 1)
        lambdaVariables('x')
        filter(parameters('list'), lambda('p', 1))",
        &expect![[r#"
            filter(parameters('people'), lambda('p', greater(lambdaVariables('p').age, 3)))
                [{"age":5,"name":"Al"}]
            filter(parameters('list'), lambda('p', 'i', less(lambdaVariables('i'), 2)))
                [3,1]
            map(range(0, 3), lambda('i', mul(lambdaVariables('i'), 2)))
                [0,2,4]
            map(parameters('people'), lambda('p', 'i', format('{0}{1}', lambdaVariables('p').name, lambdaVariables('i'))))
                ["Bo0","Al1","Cy2"]
            map(range(0, 2), lambda('i', map(range(0, 2), lambda('j', add(lambdaVariables('i'), lambdaVariables('j'))))))
                [[0,1],[1,2]]
            reduce(parameters('list'), 0, lambda('sum', 'next', add(lambdaVariables('sum'), lambdaVariables('next'))))
                6
            sort(parameters('people'), lambda('a', 'b', less(lambdaVariables('a').age, lambdaVariables('b').age)))
                [{"age":3,"name":"Bo"},{"age":3,"name":"Cy"},{"age":5,"name":"Al"}]
            toObject(parameters('people'), lambda('p', lambdaVariables('p').name), lambda('p', lambdaVariables('p').age))
                {"Al":5,"Bo":3,"Cy":3}
            toObject(parameters('list'), lambda('p', lambdaVariables('p')))
                ! unable to evaluate template language function 'toObject': the lambda must give a string; an integer is given
            groupBy(parameters('people'), lambda('p', string(lambdaVariables('p').age)))
                {"3":[{"age":3,"name":"Bo"},{"age":3,"name":"Cy"}],"5":[{"age":5,"name":"Al"}]}
            mapValues(createObject('a', 1, 'b', 2), lambda('v', add(lambdaVariables('v'), 1)))
                {"a":2,"b":3}
            map(parameters('list'), 'x')
                ! unable to evaluate template language function 'map': the function must be written here, as lambda('item', …)
            map('x', lambda('i', 1))
                ! unable to evaluate template language function 'map': the argument 'inputArray' must be an array; a string is given
            lambda('x', 1)
                ! unable to evaluate template language function 'lambda': it can only be an argument of map, filter, reduce, sort, toObject, mapValues or groupBy
            lambdaVariables('x')
                ! unable to evaluate template language function 'lambdaVariables': no lambda around it has a variable 'x'
            filter(parameters('list'), lambda('p', 1))
                ! unable to evaluate template language function 'filter': the lambda must give a boolean; an integer is given
        "#]],
    );
}

#[test]
fn dates() {
    check_in(
        "parameters",
        "utcNow()
        utcNow('d')
        utcNow('yyyy-MM-dd''T''HH:mm:ss.fff zzz')
        utcNow('ddd, d MMM yy h:m:s tt')
        utcNow('u')
        utcNow('q')
        dateTimeAdd('20201231T235959Z', 'PT1S')
        dateTimeAdd('2020-04-07 14:53:14Z', 'P3Y')
        dateTimeAdd('2020-01-31T00:00:00Z', 'P1M')
        dateTimeAdd('2020-01-31T00:00:00Z', '-P9D', 'yyyy-MM-dd')
        dateTimeAdd('yesterday', 'P1D')
        dateTimeAdd('2020-01-31T00:00:00Z', '1 day')
        dateTimeAdd('9999-12-31T00:00:00Z', 'P1D')
        dateTimeToEpoch('2020-01-01T00:00:00Z')
        dateTimeFromEpoch(1577836800)
        dateTimeFromEpoch(9223372036854775807)
        newGuid()
        equals(newGuid(), newGuid())",
        &expect![[r#"
            utcNow()
                "20261122T010203Z"
            utcNow('d')
                "11/22/2026"
            utcNow('yyyy-MM-dd''T''HH:mm:ss.fff zzz')
                "2026-11-22T01:02:03.500 +00:00"
            utcNow('ddd, d MMM yy h:m:s tt')
                "Sun, 22 Nov 26 1:2:3 AM"
            utcNow('u')
                "2026-11-22 01:02:03Z"
            utcNow('q')
                ! unable to evaluate template language function 'utcNow': `q` is not a date format; write d, G, o, s, u or yyyy-MM-dd
            dateTimeAdd('20201231T235959Z', 'PT1S')
                "20210101T000000Z"
            dateTimeAdd('2020-04-07 14:53:14Z', 'P3Y')
                "4/7/2023 2:53:14 PM"
            dateTimeAdd('2020-01-31T00:00:00Z', 'P1M')
                "2020-02-29T00:00:00Z"
            dateTimeAdd('2020-01-31T00:00:00Z', '-P9D', 'yyyy-MM-dd')
                "2020-01-22"
            dateTimeAdd('yesterday', 'P1D')
                ! unable to evaluate template language function 'dateTimeAdd': the argument 'base' must be a date and time as yyyy-MM-ddTHH:mm:ssZ or yyyyMMddTHHmmssZ
            dateTimeAdd('2020-01-31T00:00:00Z', '1 day')
                ! unable to evaluate template language function 'dateTimeAdd': the argument 'duration' must be an ISO 8601 duration as P1D, -PT2H30M, P1Y; a string is given
            dateTimeAdd('9999-12-31T00:00:00Z', 'P1D')
                ! unable to evaluate template language function 'dateTimeAdd': the argument 'base' must be a date and time as yyyy-MM-ddTHH:mm:ssZ or yyyyMMddTHHmmssZ
            dateTimeToEpoch('2020-01-01T00:00:00Z')
                1577836800
            dateTimeFromEpoch(1577836800)
                "2020-01-01T00:00:00Z"
            dateTimeFromEpoch(9223372036854775807)
                ! unable to evaluate template language function 'dateTimeFromEpoch': the argument 'seconds' must be seconds since 1970 up to year 9999; an integer is given
            newGuid()
                "6a72d0b4-a60c-421f-9207-ebe219f3f0e3"
            equals(newGuid(), newGuid())
                false
        "#]],
    );
}

#[test]
fn networks() {
    check(
        "parseCidr('10.144.0.0/20')
        parseCidr('10.0.0.5/32')
        parseCidr('fdad:3236:5555::/48')
        parseCidr('10.0.0.0')
        cidrSubnet('10.144.0.0/20', 24, 1)
        cidrSubnet('10.144.0.0/20', 24, 16)
        cidrSubnet('fdad:3236:5555::/48', 52, 1)
        cidrSubnet('10.144.0.0/20', 8, 1)
        cidrHost('10.144.3.0/24', 0)
        cidrHost('10.144.3.0/24', 253)
        cidrHost('10.144.3.0/24', 254)
        cidrHost('fdad:3236:5555:3000::/52', 1)",
        &expect![[r#"
            parseCidr('10.144.0.0/20')
                {"broadcast":"10.144.15.255","cidr":20,"firstUsable":"10.144.0.1","lastUsable":"10.144.15.254","netmask":"255.255.240.0","network":"10.144.0.0"}
            parseCidr('10.0.0.5/32')
                {"broadcast":"10.0.0.5","cidr":32,"firstUsable":"10.0.0.5","lastUsable":"10.0.0.5","netmask":"255.255.255.255","network":"10.0.0.5"}
            parseCidr('fdad:3236:5555::/48')
                {"cidr":48,"firstUsable":"fdad:3236:5555::","lastUsable":"fdad:3236:5555:ffff:ffff:ffff:ffff:ffff","netmask":"ffff:ffff:ffff::","network":"fdad:3236:5555::"}
            parseCidr('10.0.0.0')
                ! unable to evaluate template language function 'parseCidr': the argument 'network' must be a network as 10.0.0.0/16 or fd00::/48; a string is given
            cidrSubnet('10.144.0.0/20', 24, 1)
                "10.144.1.0/24"
            cidrSubnet('10.144.0.0/20', 24, 16)
                ! unable to evaluate template language function 'cidrSubnet': the network has 16 subnets of /24; index 16 is beyond
            cidrSubnet('fdad:3236:5555::/48', 52, 1)
                "fdad:3236:5555:1000::/52"
            cidrSubnet('10.144.0.0/20', 8, 1)
                ! unable to evaluate template language function 'cidrSubnet': the argument 'newCidr' must be from 20 to 32; 8 is given
            cidrHost('10.144.3.0/24', 0)
                "10.144.3.1"
            cidrHost('10.144.3.0/24', 253)
                "10.144.3.254"
            cidrHost('10.144.3.0/24', 254)
                ! unable to evaluate template language function 'cidrHost': the network has no host with index 254
            cidrHost('fdad:3236:5555:3000::/52', 1)
                "fdad:3236:5555:3000::2"
        "#]],
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn names_and_scopes() {
    check(
        "resourceId('Microsoft.App/containerApps', 'web')
        resourceId('other', 'Microsoft.App/managedEnvironments/storages', 'env', 'files')
        resourceId('11111111-0000-0000-0000-000000000000', 'g2', 'Microsoft.App/jobs', 'j')
        resourceId('Microsoft.App/containerApps', 'a', 'b')
        resourceId('web')
        subscriptionResourceId('Microsoft.Authorization/roleDefinitions', 'r')
        tenantResourceId('Microsoft.Authorization/roleDefinitions', 'r')
        managementGroupResourceId('mg', 'Microsoft.Authorization/policyDefinitions', 'p')
        extensionResourceId(resourceId('Microsoft.App/containerApps', 'web'), 'Microsoft.Authorization/locks', 'l')
        resourceGroup()
        subscription()
        tenant()
        deployment().name
        deployer().objectId
        environment().name
        managementGroup()
        pickZones('Microsoft.Compute', 'virtualMachines', 'eastus')
        providers('Microsoft.App')
        copyIndex()
        copyIndex('nodes')
        reference('nothing')
        reference(resourceId('Microsoft.App/containerApps', 'web'), '2024-03-01', 'full')
        listKeys(resourceId('Microsoft.Storage/storageAccounts', 'st'), '2023-01-01').keys[0].value
        newGuid()
        parameters('nobody')
        Parameters('LIST')[0]
        variables('x')
        conact('a')
        contoso.unique('a')
        concat()
        toLower('a', 'b')
        toLower(1)
        concat('a'
        concat 'a'
        'open
        true",
        &expect![[r#"
            resourceId('Microsoft.App/containerApps', 'web')
                "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.App/containerApps/web"
            resourceId('other', 'Microsoft.App/managedEnvironments/storages', 'env', 'files')
                "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/other/providers/Microsoft.App/managedEnvironments/env/storages/files"
            resourceId('11111111-0000-0000-0000-000000000000', 'g2', 'Microsoft.App/jobs', 'j')
                "/subscriptions/11111111-0000-0000-0000-000000000000/resourceGroups/g2/providers/Microsoft.App/jobs/j"
            resourceId('Microsoft.App/containerApps', 'a', 'b')
                ! unable to evaluate template language function 'resourceId': the type 'Microsoft.App/containerApps' needs 1 names, 2 are given
            resourceId('web')
                ! unable to evaluate template language function 'resourceId': the resource type is missing; write it as 'Microsoft.App/containerApps'
            subscriptionResourceId('Microsoft.Authorization/roleDefinitions', 'r')
                "/subscriptions/00000000-0000-0000-0000-000000000000/providers/Microsoft.Authorization/roleDefinitions/r"
            tenantResourceId('Microsoft.Authorization/roleDefinitions', 'r')
                "/providers/Microsoft.Authorization/roleDefinitions/r"
            managementGroupResourceId('mg', 'Microsoft.Authorization/policyDefinitions', 'p')
                "/providers/Microsoft.Management/managementGroups/mg/providers/Microsoft.Authorization/policyDefinitions/p"
            extensionResourceId(resourceId('Microsoft.App/containerApps', 'web'), 'Microsoft.Authorization/locks', 'l')
                "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.App/containerApps/web/providers/Microsoft.Authorization/locks/l"
            resourceGroup()
                {"id":"/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg","location":"eastus","name":"rg","properties":{"provisioningState":"Succeeded"},"tags":{},"type":"Microsoft.Resources/resourceGroups"}
            subscription()
                {"displayName":"mine","id":"/subscriptions/00000000-0000-0000-0000-000000000000","subscriptionId":"00000000-0000-0000-0000-000000000000","tenantId":"22222222-0000-0000-0000-000000000000"}
            tenant()
                {"displayName":"22222222-0000-0000-0000-000000000000","id":"/tenants/22222222-0000-0000-0000-000000000000","tenantId":"22222222-0000-0000-0000-000000000000"}
            deployment().name
                "main"
            deployer().objectId
                "me"
            environment().name
                "AzureCloud"
            managementGroup()
                ! unable to evaluate template language function 'managementGroup': there are no deployments at management group scope; use subscription() or resourceGroup()
            pickZones('Microsoft.Compute', 'virtualMachines', 'eastus')
                []
            providers('Microsoft.App')
                ! unable to evaluate template language function 'providers': it is deprecated in Azure and not answered here; write the api version into the template
            copyIndex()
                ! unable to evaluate template language function 'copyIndex': no copy loop is around it
            copyIndex('nodes')
                ! unable to evaluate template language function 'copyIndex': no copy loop 'nodes' is around it
            reference('nothing')
                ! unable to evaluate template language function 'reference': the resource 'nothing' is not defined in the template; write resourceId(type, name) for one outside
            reference(resourceId('Microsoft.App/containerApps', 'web'), '2024-03-01', 'full')
                "[Reference { id: \"/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.App/containerApps/web\", api_version: Some(\"2024-03-01\") }]"
            listKeys(resourceId('Microsoft.Storage/storageAccounts', 'st'), '2023-01-01').keys[0].value
                "[List { function: \"listKeys\", id: \"/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.Storage/storageAccounts/st\", api_version: \"2023-01-01\", body: None }]"
            newGuid()
                ! the template function 'newGuid' is not expected at this location: it can stand in a parameter's `defaultValue` only
            parameters('nobody')
                ! the template parameter 'nobody' is not found; define it under `parameters`
            Parameters('LIST')[0]
                3
            variables('x')
                ! the template variable 'x' is not found; define it under `variables`
            conact('a')
                ! the template function 'conact' is not valid; did you mean 'concat'?
            contoso.unique('a')
                ! the template function 'contoso.unique' is not valid: the template does not define it
            concat()
                ! unable to evaluate template language function 'concat': 0 arguments are given; write concat(value: array|string, more...: array|string): array|string
            toLower('a', 'b')
                ! unable to evaluate template language function 'toLower': 2 arguments are given; write toLower(text: string): string
            toLower(1)
                ! unable to evaluate template language function 'toLower': the argument 'text' must be a string; an integer is given
            concat('a'
                ! unable to parse language expression 'concat('a'' at position 11: `,` or `)` is expected, found end of the expression
            concat 'a'
                ! unable to parse language expression 'concat 'a'' at position 1: `concat` is no function call; write `concat(…)`, or quotes around a string
            'open
                ! unable to parse language expression ''open' at position 1: a string without its closing quote
            true
                ! unable to parse language expression 'true' at position 1: `true` is no function call; write `true(…)`, or quotes around a string
        "#]],
    );
}

#[test]
fn documentation_is_the_table() {
    expect_file!["../../../../docs/template-functions.md"].assert_eq(&super::function_documentation());
}
