//! The template language of Azure Resource Manager, as values: from the bytes of a deployment's body to a plan of resources.
//!
//! ```text
//! bytes --parse_body--> JSON --Template::parse--> Template --expand--> Plan --evaluate_body(i)--> body | needs
//! ```
//!
//! Nothing is fetched here. An expression that asks the running platform (`reference`, `listKeys`) names what it needs, and
//! the caller evaluates again with the answer.
//!
//! **Invariant:** evaluation is bounded in depth, steps and bytes: no template hangs or exhausts memory.

mod error;
mod eval;
mod expand;
mod expr;
mod functions;
mod graph;
mod ids;
mod jsonc;
mod meter;
mod nested;
mod node;
mod outputs;
mod parameters;
mod path;
mod plan;
mod program;
mod resource;
mod resources;
mod runtime;
mod scope;
mod template;
#[cfg(test)]
mod tests;
mod types;

pub use error::TemplateError;
pub use expr::EXPRESSION_LEN_MAX;
pub use functions::function_documentation;
pub use jsonc::{BodyError, DEPTH_MAX, Position, locate, parse_body};
pub use plan::{CopyPlace, Plan, PlannedResource};
pub use runtime::{Evaluated, Known, LookupError, Need, Runtime};
pub use scope::{Group, Scope};
pub use template::{COPY_COUNT_MAX, OUTPUTS_MAX, PARAMETERS_MAX, Parameter, RESOURCES_MAX, Template, VARIABLES_MAX};
