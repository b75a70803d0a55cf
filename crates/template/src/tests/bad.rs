//! Templates and parameters that must be refused, with everything wrong told at once.

use expect_test::{Expect, expect};

use super::*;

fn check(sections: Value, parameters: &Value, expected: &Expect) {
    let mut template = json!({
        "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
        "contentVersion": "1.0.0.0",
        "resources": [],
    });
    for (name, section) in sections.as_object().unwrap() {
        template[name] = section.clone();
    }
    let result = Template::parse(&template, parameters, scope()).and_then(|template| template.expand());
    expected.assert_eq(&complaints(&result.expect_err("the template is wrong")));
}

fn job(name: &str) -> Value {
    json!({"type": "Microsoft.App/jobs", "apiVersion": "2024-03-01", "name": name, "properties": {}})
}

fn with(mut resource: Value, members: Value) -> Value {
    for (name, value) in members.as_object().unwrap() {
        resource[name] = value.clone();
    }
    resource
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn parameters_that_do_not_fit() {
    check(
        json!({
            "definitions": {
                "pet": {"type": "object", "discriminator": {"propertyName": "kind", "mapping": {
                    "cat": {"type": "object", "properties": {"kind": {"type": "string"}, "lives": {"type": "int"}}}}}},
                "loop": {"$ref": "#/definitions/loop"},
            },
            "parameters": {
                "missing": {"type": "string"},
                "wrong": {"type": "int"},
                "nulled": {"type": "string"},
                "short": {"type": "string", "minLength": 3},
                "long": {"type": "array", "maxLength": 1},
                "small": {"type": "int", "minValue": 3},
                "big": {"type": "int", "maxValue": 3},
                "one": {"type": "string", "allowedValues": ["a", "b"]},
                "secret": {"type": "securestring", "allowedValues": ["a"]},
                "some": {"type": "array", "allowedValues": ["a", "b"]},
                "tuple": {"type": "array", "prefixItems": [{"type": "int"}, {"type": "string"}], "items": false},
                "deep": {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "object", "properties": {"b": {"type": "bool"}}}}}},
                "sealed": {"type": "object", "properties": {"a": {"type": "int"}}, "additionalProperties": false},
                "map": {"type": "object", "additionalProperties": {"type": "int"}},
                "pet": {"$ref": "#/definitions/pet"},
                "tom": {"$ref": "#/definitions/pet"},
                "vault": {"type": "string"},
                "odd": {"type": "string"},
                "untyped": {},
                "unknownType": {"type": "text"},
                "unknownRef": {"$ref": "#/definitions/nothing"},
                "looping": {"$ref": "#/definitions/loop"},
                "default": {"type": "int", "defaultValue": "[concat('a')]"},
                "eager": {"type": "string", "defaultValue": "[variables('v')]"},
                "selfish": {"type": "string", "defaultValue": "[parameters('selfless')]"},
                "selfless": {"type": "string", "defaultValue": "[parameters('selfish')]"},
                "fine": {"type": "string", "nullable": true},
            },
        }),
        &json!({
            "wrong": {"value": "1"}, "nulled": {"value": null}, "short": {"value": "ab"}, "long": {"value": [1, 2]},
            "small": {"value": 2}, "big": {"value": 4}, "one": {"value": "c"}, "secret": {"value": "do not show"},
            "some": {"value": ["a", "c"]}, "tuple": {"value": [1, "x", 2]}, "deep": {"value": {"a": [{"b": true}, {"b": 1}]}},
            "sealed": {"value": {"a": 1, "b": 2}}, "map": {"value": {"x": "y"}}, "pet": {"value": {"kind": "dog"}},
            "tom": {"value": {"kind": "cat"}},
            "vault": {"reference": {"keyVault": {"id": "/x"}, "secretName": "s"}}, "odd": "bare", "extra": {"value": 1},
        }),
        &expect![[r#"
            InvalidTemplate at parameters.looping: refers to definitions through more than 32 others, or in a circle
            InvalidTemplate at parameters.unknownRef: refers to the definition 'nothing', which does not exist
            InvalidTemplate at parameters.unknownType: the type 'text' is not valid; write string, securestring, int, bool, object, secureObject or array
            InvalidTemplate at parameters.untyped: `type` is missing; write string, int, bool, object or array
            InvalidTemplate at parameters.extra: the template parameter 'extra' is not valid; it is not present in the template. The only supported parameters for this template are 'big, deep, default, eager, fine, long, looping, map, missing, nulled, odd, one, pet, sealed, secret, selfish, selfless, short, small, some, tom, tuple, unknownRef, unknownType, untyped, vault, wrong'
            InvalidTemplate at parameters.eager.defaultValue: the template function 'variables' is not expected at this location: it cannot stand in a parameter's `defaultValue`
            InvalidTemplate at parameters.missing: the value for the template parameter 'missing' is not provided, and it has no default
            InvalidTemplate at parameters.odd: the parameter 'odd' must be written as {"value": …}
            NotImplemented at parameters.vault: the parameter 'vault' refers to a key vault, which deployments do not read here; give its value
            CircularDependency at parameters.selfish.defaultValue: circular reference: selfish -> selfless -> selfish
            InvalidTemplate at parameters.big: the provided value for the template parameter 'big' is not valid. It must be at most 3
            InvalidTemplate at parameters.deep: the provided value for the template parameter 'deep' at 'a[1].b' must be a boolean; an integer is given
            InvalidTemplate at parameters.default: the provided value for the template parameter 'default' must be an integer; a string is given
            InvalidTemplate at parameters.long: the provided value for the template parameter 'long' is not valid. Its length must be at most 1; it is 2
            InvalidTemplate at parameters.map: the provided value for the template parameter 'map' at 'x' must be an integer; a string is given
            InvalidTemplate at parameters.nulled: the provided value for the template parameter 'nulled' must be a string; null is given
            InvalidTemplate at parameters.one: the provided value for the template parameter 'one' is not valid. The value 'c' is not part of the allowed value(s): 'a,b'
            InvalidTemplate at parameters.pet: the provided value for the template parameter 'pet' must have 'kind' as one of: cat
            InvalidTemplate at parameters.sealed: the provided value for the template parameter 'sealed' has the property 'b', which its type does not allow
            InvalidTemplate at parameters.secret: the provided value for the template parameter 'secret' is not valid. The value is not part of the allowed value(s): 'a'
            InvalidTemplate at parameters.short: the provided value for the template parameter 'short' is not valid. Its length must be at least 3; it is 2
            InvalidTemplate at parameters.small: the provided value for the template parameter 'small' is not valid. It must be at least 3
            InvalidTemplate at parameters.some: the provided value for the template parameter 'some' is not valid. The value '["a","c"]' is not part of the allowed value(s): 'a,b'
            InvalidTemplate at parameters.tom: the provided value for the template parameter 'tom' must have the property 'lives'
            InvalidTemplate at parameters.tuple: the provided value for the template parameter 'tuple' must have 2 items; it has 3
            InvalidTemplate at parameters.wrong: the provided value for the template parameter 'wrong' must be an integer; a string is given
        "#]],
    );
}

#[test]
fn heads() {
    check(
        json!({"resorces": [], "contentVersion": null, "parameters": []}),
        &json!([]),
        &expect![[r#"
        InvalidTemplate at resorces: could not find member 'resorces' on object of type 'Template'; known are $schema, contentVersion, apiProfile, languageVersion, definitions, metadata, parameters, variables, functions, resources, outputs, asserts, imports, extensions
        InvalidTemplate at : required property 'contentVersion' not found in the template
        InvalidTemplate at parameters: `parameters` must be an object, not an array
        InvalidTemplate at parameters: the parameters must be an object of {name: {"value": …}}, not an array
    "#]],
    );
    check(
        json!({"$schema": "https://schema.management.azure.com/schemas/2018-05-01/subscriptionDeploymentTemplate.json#"}),
        &Value::Null,
        &expect![[r#"
            InvalidTemplate at $schema: the schema 'https://schema.management.azure.com/schemas/2018-05-01/subscriptionDeploymentTemplate.json#' is not for a deployment to a resource group
        "#]],
    );
}

#[test]
fn resources_that_make_no_sense() {
    check(
        json!({"resources": [
            "text", {}, {"type": "jobs", "name": "a", "apiVersion": "1"},
            {"type": "Microsoft.App/jobs", "name": "a"},
            with(job("a"), json!({"apiVersion": "1", "type": "Microsoft.App/managedEnvironments/storages"})),
            with(job("b"), json!({"condition": "yes"})),
            with(job("[parameters('x')]"), json!({"copy": {"count": 2}})),
            with(job("c"), json!({"copy": {"name": "n", "count": 801}})),
            with(job("d"), json!({"copy": {"name": "n", "count": "[concat('a')]", "mode": "sometimes"}})),
            with(job("e"), json!({"dependsOn": ["nobody", 1]})),
            with(job("f"), json!({"dependsOn": {"a": 1}})),
            with(job("[reference('x')]"), json!({"scope": "nowhere"})),
            with(job("g"), json!({"resources": [with(job("h"), json!({"copy": {"name": "n", "count": 1}}))]})),
        ]}),
        &Value::Null,
        &expect![[r#"
            InvalidTemplate at resources[0]: a resource must be an object, not a string
            InvalidTemplate at resources[1]: the resource has no `type`; write it as 'Microsoft.App/containerApps'
            InvalidTemplate at resources[2]: the resource has the type 'jobs'; write it as 'Microsoft.App/containerApps'
            InvalidTemplate at resources[3]: the resource of type 'Microsoft.App/jobs' has no `apiVersion`
            InvalidTemplate at resources[6].name: the template parameter 'x' is not found; define it under `parameters`
            InvalidTemplate at resources[6].copy: `copy` of a resource must have `name` and `count`
            InvalidTemplate at resources[8].copy.mode: the mode must be 'parallel' or 'serial'
            InvalidTemplate at resources[10].dependsOn: `dependsOn` must be an array of strings, not an object
            InvalidTemplate at resources[11].name: the template function 'reference' is not expected at this location: it can stand in the properties of a resource and in outputs only
            InvalidTemplate at resources[12].resources[0].copy: a loop cannot be within another resource; move it to the top level
        "#]],
    );
    check(
        json!({"resources": [
            with(job("b"), json!({"condition": "yes"})),
            with(job("c"), json!({"copy": {"name": "n", "count": 801}})),
            with(job("d"), json!({"copy": {"name": "n", "count": "[concat('a')]"}})),
            with(job("e"), json!({"dependsOn": ["nobody", 1]})),
            with(job("f"), json!({"dependsOn": ["f"]})),
            with(job("x/y"), json!({"scope": "nowhere"})),
            with(job("x/y"), json!({})),
            job("twice"), job("TWICE"),
            with(job("i"), json!({"properties": {"a": {"b": ["[substring('abc', 2, 9)]"]}, "c": "[copyIndex()]"}})),
        ]}),
        &Value::Null,
        &expect![[r#"
            InvalidTemplate at resources[0].condition: the condition must be a boolean, not a string
            InvalidTemplate at resources[1].copy.count: the copy count must be an integer from 0 to 800; 801 is given
            InvalidTemplate at resources[2].copy.count: the copy count must be an integer from 0 to 800; a string is given
            InvalidTemplate at resources[5].scope: 'nowhere' is not a scope; write a resource id
            InvalidTemplate at resources[6].name: the type 'Microsoft.App/jobs' has 1 segments and the name 'x/y' 2; a nested resource type must have as many segments as its name
            InvalidTemplate at resources[8]: the resource '/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.App/jobs/TWICE' is defined multiple times in the template, also at resources[7]
            InvalidTemplate at resources[3].dependsOn[0]: the resource 'nobody' is not defined in the template
            InvalidTemplate at resources[3].dependsOn[1]: `dependsOn` must hold strings, not an integer
            CircularDependency at resources[4].dependsOn[0]: the resource '/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.App/jobs/f' depends on itself
            InvalidTemplate at resources[9].properties.a.b[0]: unable to evaluate template language function 'substring': the argument 'length' must be from 0 to 1; 9 is given
            InvalidTemplate at resources[9].properties.c: unable to evaluate template language function 'copyIndex': no copy loop is around it
        "#]],
    );
}

#[test]
fn circles() {
    check(
        json!({"resources": [
            with(job("a"), json!({"dependsOn": ["c"]})),
            with(job("b"), json!({"dependsOn": ["a"]})),
            with(job("c"), json!({"properties": {"x": "[reference('b').y]"}})),
            with(job("free"), json!({"dependsOn": ["a"]})),
        ]}),
        &Value::Null,
        &expect![[r#"
            CircularDependency at resources[0]: circular dependency detected on resource '/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.App/jobs/a': a -> c -> b -> a
        "#]],
    );
    check(
        json!({"resources": [with(job("a"), json!({"properties": {"x": "[reference('a').y]"}}))]}),
        &Value::Null,
        &expect![[r#"
            CircularDependency at resources[0]: the resource '/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.App/jobs/a' refers to itself
        "#]],
    );
    check(
        json!({"variables": {
            "a": "[variables('b')]", "b": "[concat('x', variables('c'))]", "c": ["[variables('a')]"], "uses": "[variables('a')]",
            "d": "[variables(concat('e', ''))]", "e": "[variables(concat('d', ''))]",
        }}),
        &Value::Null,
        &expect![[r#"
            CircularDependency at variables.a: circular reference: a -> b -> c -> a
            InvalidTemplate at variables.e: 'e' refers to itself, directly or through others
        "#]],
    );
}

#[test]
fn everything_wrong_is_told_at_once() {
    check(
        json!({
            "variables": {"a": "[nosuch()]", "b": "[variables('c')]", "d": "[reference('x')]", "e": "[newGuid()]", "f": "[variables('a')]"},
            "functions": [{"namespace": "my", "members": {"f": {"parameters": [{"name": "x", "type": "int"}], "output": {"type": "string", "value": "[variables('a')]"}}}}],
            "resources": [
                with(job("[toLower()]"), json!({"properties": {"x": ["[my.f()]", "[my.g()]", "[parameters('p')]"]}})),
                {"type": "Microsoft.Resources/deployments", "apiVersion": "1", "name": "n",
                 "properties": {"mode": "Incremental", "template": {"outputs": {"o": {"value": "[variables('z')]"}}}}},
            ],
            "outputs": {"o": {"type": "string"}, "q": {"type": "strin", "value": "[concat('a'"}},
        }),
        &Value::Null,
        &expect![[r#"
            InvalidTemplate at functions[0].members.f.output.value: the template function 'variables' is not expected at this location: a user function knows its own parameters only
            InvalidTemplate at variables.a: the template function 'nosuch' is not valid
            InvalidTemplate at variables.b: the template variable 'c' is not found; define it under `variables`
            InvalidTemplate at variables.d: the template function 'reference' is not expected at this location: it can stand in the properties of a resource and in outputs only
            InvalidTemplate at variables.e: the template function 'newGuid' is not expected at this location: it can stand in a parameter's `defaultValue` only
            InvalidTemplate at resources[0].name: unable to evaluate template language function 'toLower': 0 arguments are given; write toLower(text: string): string
            InvalidTemplate at resources[0].properties.x[0]: the template function 'my.f' takes 1 arguments, 0 are given
            InvalidTemplate at resources[0].properties.x[1]: the template function 'my.g' is not valid: the template does not define it
            InvalidTemplate at resources[0].properties.x[2]: the template parameter 'p' is not found; define it under `parameters`
            InvalidTemplate at resources[1].properties.template.outputs.o.value: the template variable 'z' is not found; define it under `variables`
            InvalidTemplate at outputs.o: an output needs a `value`, or a `copy` with `count` and `input`
            InvalidTemplate at outputs.q: the type 'strin' is not valid; write string, securestring, int, bool, object, secureObject or array
        "#]],
    );
    check(
        json!({
            "functions": [{"namespace": "my", "members": {"f": {"parameters": [{"name": "x", "type": "int"}], "output": {"type": "string", "value": "[parameters('x')]"}}}}],
            "variables": {"a": "[my.f('text')]", "b": "[my.f(1)]"},
        }),
        &Value::Null,
        &expect![[r#"
            InvalidTemplate at variables.b: the result of function 'my.f' must be a string; an integer is given
            InvalidTemplate at variables.a: the argument 'x' of function 'my.f' must be an integer; a string is given
        "#]],
    );
}
