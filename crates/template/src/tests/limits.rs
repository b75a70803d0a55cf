//! Templates that would hang or fill memory if they could. Each test also bounds the time, generously.

use std::fmt::Write as _;
use std::time::Duration;

use cove_testing::processor_time;

use super::*;

fn within(limit: Duration, run: impl FnOnce()) {
    let begun = processor_time();
    run();
    let took = processor_time() - begun;
    assert!(took < limit, "took {took:?}");
}

fn template(sections: &str) -> String {
    format!("{{\"$schema\": \"x/deploymentTemplate.json#\", \"contentVersion\": \"1.0.0.0\", {sections}}}")
}

fn first_complaint(sections: &str) -> String {
    let errors = plan(&template(sections), &Value::Null).expect_err("the template is beyond a limit");
    errors[0].message.clone()
}

#[test]
fn a_value_that_doubles_ends_early() {
    let mut variables = String::from("\"v0\": \"ha\"");
    for index in 1..100 {
        let _ =
            write!(variables, ", \"v{index}\": [\"[variables('v{}')]\", \"[variables('v{}')]\"]", index - 1, index - 1);
    }
    within(Duration::from_secs(20), || {
        let message = first_complaint(&format!("\"variables\": {{{variables}}}, \"resources\": []"));
        assert!(message.contains("64 MiB") || message.contains("steps"), "{message}");
    });
    let mut variables = String::from("\"v0\": \"0123456789\"");
    for index in 1..100 {
        let _ = write!(
            variables,
            ", \"v{index}\": \"[replace(variables('v{}'), '0', variables('v{}'))]\"",
            index - 1,
            index - 1
        );
    }
    within(Duration::from_secs(20), || {
        let message = first_complaint(&format!("\"variables\": {{{variables}}}, \"resources\": []"));
        assert!(message.contains("64 MiB"), "{message}");
    });
}

#[test]
fn loops_within_loops_end_early() {
    let sum = "reduce(range(0, 10000), 0, lambda('a', 'b', add(lambdaVariables('a'), lambdaVariables('b'))))";
    let all = format!("map(range(0, 10000), lambda('i', {sum}))");
    within(Duration::from_secs(60), || {
        let message = first_complaint(&format!("\"variables\": {{\"v\": \"[{all}]\"}}, \"resources\": []"));
        assert!(message.contains("steps"), "{message}");
    });
}

#[test]
fn depth_is_bounded() {
    let calls = format!("[{}'a'{}]", "toLower(".repeat(99), ")".repeat(99));
    assert!(
        plan(&template(&format!("\"variables\": {{\"v\": \"{calls}\"}}, \"resources\": []")), &Value::Null).is_ok()
    );
    let calls = format!("[{}'a'{}]", "toLower(".repeat(5000), ")".repeat(5000));
    let message = first_complaint(&format!("\"variables\": {{\"v\": \"{calls}\"}}, \"resources\": []"));
    assert!(message.contains("more than") || message.contains("deeper than"), "{message}");
    // a value that nests with each variable
    let mut variables = String::from("\"v0\": []");
    for index in 1..100 {
        let _ = write!(variables, ", \"v{index}\": [[[\"[variables('v{}')]\"]]]", index - 1);
    }
    let message = first_complaint(&format!("\"variables\": {{{variables}}}, \"resources\": []"));
    assert!(message.contains("deeper than 64"), "{message}");
    let reduce = "[reduce(range(0, 1000), createArray(), lambda('a', 'b', createArray(lambdaVariables('a'))))]";
    let message = first_complaint(&format!("\"variables\": {{\"v\": \"{reduce}\"}}, \"resources\": []"));
    assert!(message.contains("deeper than 64"), "{message}");
    // functions that call each other without end
    let endless = "\"functions\": [{\"namespace\": \"my\", \"members\": {\"f\": {\"parameters\": [], \"output\": {\"type\": \
                   \"string\", \"value\": \"[my.g()]\"}}, \"g\": {\"parameters\": [], \"output\": {\"type\": \"string\", \
                   \"value\": \"[concat(my.f(), my.f())]\"}}}}], \"variables\": {\"v\": \"[my.f()]\"}, \"resources\": []";
    assert!(first_complaint(endless).contains("deeper than 300"));
    // variables whose order only shows while they are evaluated
    let mut variables = String::from("\"v0\": \"x\"");
    for index in 1..500 {
        let _ = write!(variables, ", \"v{index}\": \"[variables(concat('v', '{}'))]\"", index - 1);
    }
    let _ = plan(&template(&format!("\"variables\": {{{variables}}}, \"resources\": []")), &Value::Null);
}

#[test]
fn a_long_chain_of_variables_is_no_problem() {
    let mut variables = String::from("\"v511\": \"x\"");
    for index in 0..511 {
        let _ = write!(variables, ", \"v{index}\": \"[variables('v{}')]\"", index + 1);
    }
    assert!(plan(&template(&format!("\"variables\": {{{variables}}}, \"resources\": []")), &Value::Null).is_ok());
}

#[test]
fn counts_are_bounded() {
    let resource = |index: usize| {
        format!(
            "{{\"type\": \"Microsoft.App/jobs\", \"apiVersion\": \"1\", \"name\": \"j{index}\", \"properties\": {{\"a\": \"[guid('x')]\"}}}}"
        )
    };
    let list = |count: usize| (0..count).map(resource).collect::<Vec<_>>().join(",");
    within(Duration::from_secs(20), || {
        let full = plan(&template(&format!("\"resources\": [{}]", list(800))), &Value::Null).unwrap();
        assert_eq!(full.resources.len(), 800);
    });
    assert!(first_complaint(&format!("\"resources\": [{}]", list(801))).contains("more than 800 resources"));
    let looped = "{\"type\": \"Microsoft.App/jobs\", \"apiVersion\": \"1\", \"name\": \"[concat('k', copyIndex())]\", \"copy\": \
                  {\"name\": \"l\", \"count\": 800}}";
    assert!(first_complaint(&format!("\"resources\": [{looped}, {}]", list(1))).contains("more than 800 resources"));
    let many = |count: usize| (0..count).map(|index| format!("\"n{index}\": \"x\"")).collect::<Vec<_>>().join(",");
    assert!(first_complaint(&format!("\"variables\": {{{}}}, \"resources\": []", many(513))).contains("at most 512"));
    assert!(first_complaint(&format!("\"parameters\": {{{}}}, \"resources\": []", many(257))).contains("at most 256"));
}

#[test]
fn four_megabytes_are_read_in_no_time() {
    let mut text = String::from("\"resources\": [");
    let mut index = 0;
    while text.len() < 4 << 20 {
        let _ = write!(
            text,
            "{}{{\"type\": \"Microsoft.App/jobs\", \"apiVersion\": \"1\", \"name\": \"[concat('n{index}', toLower('A'))]\", \
            \"properties\": {{\"a\": [1, 2, {{\"b\": \"[if(true(), 'x', 'y')]\"}}]}}}}",
            if index > 0 { "," } else { "" }
        );
        index += 1;
    }
    text.push(']');
    within(Duration::from_secs(30), || assert!(first_complaint(&text).contains("more than 800 resources")));
    within(Duration::from_secs(10), || {
        let bytes = "{\"a\":".repeat(1_000_000);
        assert!(crate::parse_body(bytes.as_bytes()).is_err());
    });
}
