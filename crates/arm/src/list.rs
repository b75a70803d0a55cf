//! Lists as Azure pages them: `{"value": […], "nextLink": "…"}`.

use serde_json::{Value, json};

/// One page; `next_link` must be an absolute URL on the origin of the request, since clients send their token only there.
#[must_use]
pub fn render(values: Vec<Value>, next_link: Option<&str>) -> Value {
    let mut page = json!({ "value": values });
    if let Some(next_link) = next_link {
        page["nextLink"] = json!(next_link);
    }
    page
}
