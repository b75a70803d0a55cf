//! tidy: table
//! The table of functions: what each is called, takes and gives. `docs/template-functions.md` is made from it.

use super::Availability::{Everywhere, NotInDefaults, ParameterDefaults, Runtime};
use super::Run::{Lazy, Plain};
use super::{
    Availability, Function, Run, arrays, cidr, convert, dates, lambdas, logic, numbers, objects, references, scopes,
    strings,
};

pub(super) const PREFACE: &str = "# Template functions

The functions that expressions in templates may call, `\"[concat(parameters('name'), '-app')]\"`. Names are compared without
regard to case. This page is made from the function table; a test keeps it true
(`UPDATE_EXPECT=1 cargo test -p cove-template documentation` writes it).

In signatures `?` marks an argument that may be left out and `...` one that may be repeated.

Limits of one evaluation (a resource's body, all outputs, all variables): 10 million steps, 64 MiB of values, 300 levels of
calls. `range` makes at most 10,000 items, a copy loop at most 800, an expression has at most 24,576 characters.
";

pub(super) const ABSENT: &str = "
## Differs from Azure

- `uniqueString` gives 13 letters and digits that are always the same for the same arguments, but not the ones Azure gives.
- `pickZones` answers an empty array: one machine has no zones.
- `providers`, `managementGroup` and `getSecret` are known and refused with a sentence that says what to use instead.
- A function of a newer language version that is not listed here is refused with `InvalidTemplate`.
";

const fn row(
    group: &'static str,
    signature: &'static str,
    about: &'static str,
    availability: Availability,
    run: Run,
) -> Function {
    // the name is what stands before the bracket
    let bytes = signature.as_bytes();
    let mut end = 0;
    while bytes[end] != b'(' {
        end += 1;
    }
    let (name, _) = signature.split_at(end);
    Function { name, group, signature, about, availability, run }
}

const ARRAYS: &str = "Arrays, and functions on arrays, strings and objects alike";
const OBJECTS: &str = "Objects";
const STRINGS: &str = "Strings";
const NUMBERS: &str = "Numbers";
const LOGIC: &str = "Logic and comparison";
const LAMBDAS: &str = "Lambdas";
const DATES: &str = "Dates";
const NETWORKS: &str = "Networks";
const NAMES: &str = "Parameters, variables and loops";
const RESOURCES: &str = "Resources";
const SCOPES: &str = "Scopes";

#[rustfmt::skip]
pub(super) static FUNCTIONS: &[Function] = &[
    row(ARRAYS, "array(value: any): array", "The value as an array: itself, or an array with it.", Everywhere, Plain(arrays::array)),
    row(ARRAYS, "concat(value: array|string, more...: array|string): array|string", "Strings, numbers and booleans joined to a string, or arrays joined to an array.", Everywhere, Plain(arrays::concat)),
    row(ARRAYS, "contains(container: array|object|string, item: any): bool", "Whether an array has an item, an object a key (without regard to case), a string a part.", Everywhere, Plain(arrays::contains)),
    row(ARRAYS, "createArray(item...: any): array", "An array of the arguments.", Everywhere, Plain(arrays::create_array)),
    row(ARRAYS, "empty(value: array|object|string): bool", "Whether it has nothing in it; null is empty.", Everywhere, Plain(arrays::empty)),
    row(ARRAYS, "first(value: array|string): any", "The first item or character; null or an empty string when there is none.", Everywhere, Plain(arrays::first)),
    row(ARRAYS, "flatten(arrays: array): array", "The items of all arrays in an array.", Everywhere, Plain(arrays::flatten)),
    row(ARRAYS, "indexFromEnd(array: array, index: int): any", "The item counted from the end, 1 is the last.", Everywhere, Plain(arrays::index_from_end)),
    row(ARRAYS, "indexOf(container: array|string, item: any): int", "Index of the first match, -1 without one; strings are compared without regard to case.", Everywhere, Plain(arrays::index_of)),
    row(ARRAYS, "intersection(value: array|object, more...: array|object): array|object", "What all have in common.", Everywhere, Plain(arrays::intersection)),
    row(ARRAYS, "last(value: array|string): any", "The last item or character; null or an empty string when there is none.", Everywhere, Plain(arrays::last)),
    row(ARRAYS, "lastIndexOf(container: array|string, item: any): int", "Index of the last match, -1 without one.", Everywhere, Plain(arrays::last_index_of)),
    row(ARRAYS, "length(value: array|object|string): int", "Count of items, members or characters.", Everywhere, Plain(arrays::length)),
    row(ARRAYS, "range(start: int, count: int): array", "Consecutive integers, at most 10,000.", Everywhere, Plain(numbers::range)),
    row(ARRAYS, "skip(value: array|string, count: int): array|string", "Without the first items or characters.", Everywhere, Plain(arrays::skip)),
    row(ARRAYS, "take(value: array|string, count: int): array|string", "The first items or characters.", Everywhere, Plain(arrays::take)),
    row(ARRAYS, "tryIndexFromEnd(array: array, index: int): any", "As indexFromEnd, null when there is no such item.", Everywhere, Plain(arrays::try_index_from_end)),
    row(ARRAYS, "union(value: array|object, more...: array|object): array|object", "All items without doubles, or all members; objects within objects are merged.", Everywhere, Plain(arrays::union)),

    row(OBJECTS, "createObject(keysAndValues...: any): object", "An object of keys and values in turn.", Everywhere, Plain(objects::create_object)),
    row(OBJECTS, "items(object: object): array", "Members as `{\"key\", \"value\"}`, sorted by key.", Everywhere, Plain(objects::items)),
    row(OBJECTS, "json(text: string): any", "The value that a JSON text describes.", Everywhere, Plain(convert::json)),
    row(OBJECTS, "null(): any", "Null.", Everywhere, Plain(logic::null)),
    row(OBJECTS, "objectKeys(object: object): array", "The keys, sorted.", Everywhere, Plain(objects::object_keys)),
    row(OBJECTS, "shallowMerge(inputs: array): object", "All members of the objects in an array; a later one replaces an earlier one.", Everywhere, Plain(objects::shallow_merge)),
    row(OBJECTS, "tryGet(value: array|object, key: int|string, more...: int|string): any", "The member along the keys, null when one is not there.", Everywhere, Plain(objects::try_get)),

    row(STRINGS, "base64(text: string): string", "The base64 form of the text.", Everywhere, Plain(convert::base64)),
    row(STRINGS, "base64ToJson(encoded: string): any", "The value of JSON in base64.", Everywhere, Plain(convert::base64_to_json)),
    row(STRINGS, "base64ToString(encoded: string): string", "The text of base64.", Everywhere, Plain(convert::base64_to_string)),
    row(STRINGS, "buildUri(components: object): string", "A URI of `scheme`, `host`, `port`, `path` and `query`.", Everywhere, Plain(convert::build_uri)),
    row(STRINGS, "dataUri(text: string): string", "A data URI of the text.", Everywhere, Plain(convert::data_uri)),
    row(STRINGS, "dataUriToString(uri: string): string", "The text of a data URI.", Everywhere, Plain(convert::data_uri_to_string)),
    row(STRINGS, "endsWith(text: string, end: string): bool", "Whether a string ends so, without regard to case.", Everywhere, Plain(strings::ends_with)),
    row(STRINGS, "fail(message: string): never", "Ends the deployment with this message.", Everywhere, Plain(strings::fail)),
    row(STRINGS, "format(format: string, value...: any): string", ".NET's composite format: `{0}`, `{0,8}`, `{0:N2}`, `{0:x8}`, `{0:000}`.", Everywhere, Plain(strings::format)),
    row(STRINGS, "guid(base: string, more...: string): string", "A GUID made of the arguments, the same one each time.", Everywhere, Plain(convert::guid)),
    row(STRINGS, "join(items: array, delimiter: string): string", "The items with a delimiter between them.", Everywhere, Plain(strings::join)),
    row(STRINGS, "newGuid(): string", "A random GUID.", ParameterDefaults, Plain(convert::new_guid)),
    row(STRINGS, "padLeft(value: int|string, width: int, paddingCharacter?: string): string", "Filled up from the left.", Everywhere, Plain(strings::pad_left)),
    row(STRINGS, "parseUri(uri: string): object", "`scheme`, `host`, `port`, `path` and `query` of a URI.", Everywhere, Plain(convert::parse_uri)),
    row(STRINGS, "replace(text: string, oldString: string, newString: string): string", "Every match replaced.", Everywhere, Plain(strings::replace)),
    row(STRINGS, "split(text: string, delimiter: array|string): array", "The parts between delimiters.", Everywhere, Plain(strings::split)),
    row(STRINGS, "startsWith(text: string, start: string): bool", "Whether a string begins so, without regard to case.", Everywhere, Plain(strings::starts_with)),
    row(STRINGS, "string(value: any): string", "The value as text, objects and arrays as JSON.", Everywhere, Plain(strings::string)),
    row(STRINGS, "substring(text: string, startIndex: int, length?: int): string", "A part of a string.", Everywhere, Plain(strings::substring)),
    row(STRINGS, "toLower(text: string): string", "In lower case.", Everywhere, Plain(strings::to_lower)),
    row(STRINGS, "toUpper(text: string): string", "In upper case.", Everywhere, Plain(strings::to_upper)),
    row(STRINGS, "trim(text: string): string", "Without white space at the ends.", Everywhere, Plain(strings::trim)),
    row(STRINGS, "uniqueString(base: string, more...: string): string", "13 letters and digits made of the arguments, the same each time.", Everywhere, Plain(convert::unique_string)),
    row(STRINGS, "uri(baseUri: string, relativeUri: string): string", "A URI relative to another.", Everywhere, Plain(convert::uri)),
    row(STRINGS, "uriComponent(text: string): string", "Percent-encoded.", Everywhere, Plain(convert::uri_component)),
    row(STRINGS, "uriComponentToString(encoded: string): string", "Percent-decoded.", Everywhere, Plain(convert::uri_component_to_string)),

    row(NUMBERS, "add(a: int, b: int): int", "The sum; an overflow is an error, as in all of these.", Everywhere, Plain(numbers::add)),
    row(NUMBERS, "div(a: int, b: int): int", "The quotient without its fraction.", Everywhere, Plain(numbers::div)),
    row(NUMBERS, "float(value: int|string): float", "As a number with a fraction.", Everywhere, Plain(numbers::float)),
    row(NUMBERS, "int(value: int|string): int", "As an integer.", Everywhere, Plain(numbers::int)),
    row(NUMBERS, "max(value: array|int, more...: int): int", "The largest.", Everywhere, Plain(numbers::max)),
    row(NUMBERS, "min(value: array|int, more...: int): int", "The smallest.", Everywhere, Plain(numbers::min)),
    row(NUMBERS, "mod(a: int, b: int): int", "The remainder.", Everywhere, Plain(numbers::mod_)),
    row(NUMBERS, "mul(a: int, b: int): int", "The product.", Everywhere, Plain(numbers::mul)),
    row(NUMBERS, "sub(a: int, b: int): int", "The difference.", Everywhere, Plain(numbers::sub)),

    row(LOGIC, "and(operand: bool, another: bool, more...: bool): bool", "Whether all are true; stops at the first that is not.", Everywhere, Lazy(logic::and)),
    row(LOGIC, "bool(value: bool|int|string): bool", "As a boolean.", Everywhere, Plain(logic::bool_)),
    row(LOGIC, "coalesce(value: any, more...: any): any", "The first that is not null.", Everywhere, Lazy(logic::coalesce)),
    row(LOGIC, "equals(a: any, b: any): bool", "Whether both are equal; strings with regard to case.", Everywhere, Plain(logic::equals)),
    row(LOGIC, "false(): bool", "False.", Everywhere, Plain(logic::false_)),
    row(LOGIC, "greater(a: int|string, b: int|string): bool", "Whether the first is greater.", Everywhere, Plain(logic::greater)),
    row(LOGIC, "greaterOrEquals(a: int|string, b: int|string): bool", "Whether the first is greater or equal.", Everywhere, Plain(logic::greater_or_equals)),
    row(LOGIC, "if(condition: bool, ifTrue: any, ifFalse: any): any", "One of two; the other is not evaluated.", Everywhere, Lazy(logic::if_)),
    row(LOGIC, "less(a: int|string, b: int|string): bool", "Whether the first is less.", Everywhere, Plain(logic::less)),
    row(LOGIC, "lessOrEquals(a: int|string, b: int|string): bool", "Whether the first is less or equal.", Everywhere, Plain(logic::less_or_equals)),
    row(LOGIC, "not(value: bool): bool", "The opposite.", Everywhere, Plain(logic::not)),
    row(LOGIC, "or(operand: bool, another: bool, more...: bool): bool", "Whether one is true; stops at the first that is.", Everywhere, Lazy(logic::or)),
    row(LOGIC, "true(): bool", "True.", Everywhere, Plain(logic::true_)),

    row(LAMBDAS, "filter(inputArray: array, lambda: lambda): array", "The items for which the lambda is true.", Everywhere, Lazy(lambdas::filter)),
    row(LAMBDAS, "groupBy(inputArray: array, lambda: lambda): object", "The items by the key that the lambda gives.", Everywhere, Lazy(lambdas::group_by)),
    row(LAMBDAS, "lambda(nameOrBody: any, more...: any): lambda", "Names of variables, then a body; only as an argument of the functions here.", Everywhere, Lazy(lambdas::lambda)),
    row(LAMBDAS, "lambdaVariables(variableName: string): any", "A variable of a lambda around it.", Everywhere, Lazy(lambdas::lambda_variables)),
    row(LAMBDAS, "map(inputArray: array, lambda: lambda): array", "What the lambda makes of each item; its second variable is the index.", Everywhere, Lazy(lambdas::map)),
    row(LAMBDAS, "mapValues(inputObject: object, lambda: lambda): object", "What the lambda makes of each value.", Everywhere, Lazy(lambdas::map_values)),
    row(LAMBDAS, "reduce(inputArray: array, initialValue: any, lambda: lambda): any", "One value of all items; the lambda takes the value so far, the item and its index.", Everywhere, Lazy(lambdas::reduce)),
    row(LAMBDAS, "sort(inputArray: array, lambda: lambda): array", "Sorted; the lambda says whether its first variable comes before its second.", Everywhere, Lazy(lambdas::sort)),
    row(LAMBDAS, "toObject(inputArray: array, keyLambda: lambda, valueLambda?: lambda): object", "An object with a member per item.", Everywhere, Lazy(lambdas::to_object)),

    row(DATES, "dateTimeAdd(base: string, duration: string, format?: string): string", "A time later or earlier by an ISO 8601 duration, `P1D`, `-PT2H`.", Everywhere, Plain(dates::date_time_add)),
    row(DATES, "dateTimeFromEpoch(seconds: int): string", "The time so many seconds after 1970.", Everywhere, Plain(dates::date_time_from_epoch)),
    row(DATES, "dateTimeToEpoch(dateTime: string): int", "Seconds since 1970.", Everywhere, Plain(dates::date_time_to_epoch)),
    row(DATES, "utcNow(format?: string): string", "The time of the deployment, `yyyyMMddTHHmmssZ` or in a .NET format.", ParameterDefaults, Plain(dates::utc_now)),

    row(NETWORKS, "cidrHost(network: string, hostIndex: int): string", "A host's address in a network, 0 is the first usable one.", Everywhere, Plain(cidr::cidr_host)),
    row(NETWORKS, "cidrSubnet(network: string, newCidr: int, subnetIndex: int): string", "A subnet of a network.", Everywhere, Plain(cidr::cidr_subnet)),
    row(NETWORKS, "parseCidr(network: string): object", "`network`, `netmask`, `broadcast`, `firstUsable`, `lastUsable`, `cidr`.", Everywhere, Plain(cidr::parse_cidr)),

    row(NAMES, "copyIndex(loopNameOrOffset?: int|string, offset?: int): int", "The turn of the copy loop, from 0 or from the offset.", NotInDefaults, Plain(references::copy_index)),
    row(NAMES, "parameters(parameterName: string): any", "A parameter's value.", Everywhere, Lazy(references::parameters)),
    row(NAMES, "variables(variableName: string): any", "A variable's value.", NotInDefaults, Lazy(references::variables)),

    row(RESOURCES, "extensionResourceId(baseResourceId: string, resourceType: string, resourceName...: string): string", "The id of a resource that extends another.", Everywhere, Plain(references::extension_resource_id)),
    row(RESOURCES, "getSecret(name: string, version?: string): string", "Refused: key vaults are not read by deployments.", Everywhere, Plain(references::get_secret)),
    row(RESOURCES, "list*(resourceNameOrId: string, apiVersion: string, body?: object): object", "`listKeys`, `listSecrets`, …: what the resource answers to a POST of that name.", Runtime, Plain(references::list)),
    row(RESOURCES, "managementGroupResourceId(managementGroupOrType: string, typeOrName: string, more...: string): string", "The id of a resource at a management group, which must be named.", Everywhere, Plain(references::management_group_resource_id)),
    row(RESOURCES, "pickZones(namespace: string, resourceType: string, location: string, count?: int, offset?: int): array", "An empty array: one machine has no zones.", Everywhere, Plain(references::pick_zones)),
    row(RESOURCES, "providers(namespace: string, resourceType?: string): object", "Refused: deprecated in Azure.", Everywhere, Plain(references::providers)),
    row(RESOURCES, "reference(resourceNameOrId: string, apiVersion?: string, full?: string): object", "The properties of a resource, with `'Full'` all of it; one of the same template is waited for.", Runtime, Plain(references::reference)),
    row(RESOURCES, "references(loopName: string, full?: string): array", "As reference, for all resources of a loop.", Runtime, Plain(references::references)),
    row(RESOURCES, "resourceId(subscriptionOrGroupOrType: string, more...: string): string", "The id of a resource: subscription and group may come first, then the type, then a name per segment.", Everywhere, Plain(references::resource_id)),
    row(RESOURCES, "resourceInfo(symbolicName: string): object", "`id`, `name`, `type` and `apiVersion` of a resource of the template.", Runtime, Plain(references::resource_info)),
    row(RESOURCES, "subscriptionResourceId(subscriptionOrType: string, more...: string): string", "The id of a resource at a subscription.", Everywhere, Plain(references::subscription_resource_id)),
    row(RESOURCES, "tenantResourceId(resourceType: string, resourceName...: string): string", "The id of a resource at the tenant.", Everywhere, Plain(references::tenant_resource_id)),

    row(SCOPES, "deployer(): object", "Who deploys: `objectId`, `tenantId`, `userPrincipalName`.", Everywhere, Plain(scopes::deployer)),
    row(SCOPES, "deployment(): object", "The deployment: `name`, `location`, `properties`.", Everywhere, Plain(scopes::deployment)),
    row(SCOPES, "environment(): object", "The cloud: endpoints and suffixes.", Everywhere, Plain(scopes::environment)),
    row(SCOPES, "managementGroup(): object", "Refused: there are no deployments at that scope.", Everywhere, Plain(scopes::management_group)),
    row(SCOPES, "resourceGroup(): object", "The resource group: `id`, `name`, `location`, `tags`.", Everywhere, Plain(scopes::resource_group)),
    row(SCOPES, "subscription(): object", "The subscription: `id`, `subscriptionId`, `tenantId`, `displayName`.", Everywhere, Plain(scopes::subscription)),
    row(SCOPES, "tenant(): object", "The tenant: `tenantId`.", Everywhere, Plain(scopes::tenant)),
];
