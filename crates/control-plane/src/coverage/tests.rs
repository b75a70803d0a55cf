//! The table and the page against the router.

use expect_test::expect_file;

use super::*;

fn table() -> Table {
    Table::new(crate::front::routes())
}

#[test]
fn the_coverage_page_is_up_to_date() {
    expect_file!["../../../../docs/api-coverage.md"].assert_eq(&page(&table()));
}

#[test]
fn coverage_knows_every_operation() {
    let table = table();
    let unknown: Vec<String> = operations()
        .filter(|operation| table.state(&operation.method, &operation.path) == State::Unknown)
        .map(|operation| format!("{} {}", operation.method, short(&operation.path)))
        .collect();
    assert_eq!(unknown, Vec::<String>::new(), "operations without a route");
    let rendered = render(&table);
    assert_eq!(rendered["operations"], 173);
}

#[test]
fn actions_have_the_names_of_azures_roles() {
    let actions = actions(&table());
    for name in [
        "containerApps/read",
        "containerApps/write",
        "containerApps/listSecrets/action",
        "containerApps/revisions/restart/action",
        "managedEnvironments/certificates/delete",
        "getCustomDomainVerificationId/action",
    ] {
        assert!(actions.contains_key(name), "{name} of {actions:?}");
    }
}
