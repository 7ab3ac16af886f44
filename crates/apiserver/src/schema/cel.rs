//! `x-kubernetes-validations`: rules in the Common Expression Language.

use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc};

use cel::{
    Context, Program,
    common::ast::{EntryExpr, Expr},
    objects::{Key, Map},
};
use serde_json::Value;

use super::{Additional, ListType, Path, Schema, Type, validate::MOST_ERRORS, validate::short};
use crate::{
    error::{FieldError, FieldErrorKind},
    json,
};

/// Steps that a rule may take for one value, by an upper estimate.
const BUDGET: u64 = 10_000_000;
/// Steps that all rules may take for one object.
const OBJECT_BUDGET: u64 = 10 * BUDGET;

/// A compiled rule.
#[derive(Debug)]
pub struct Rule {
    source: Box<str>,
    program: Program,
    message: Option<Box<str>>,
    message_expression: Option<Program>,
    field_path: Option<Box<str>>,
    kind: FieldErrorKind,
    /// Compares with `oldSelf`, so it is for updates only.
    transition: bool,
    optional_old: bool,
    size: u64,
    /// How deeply loops are nested in it.
    depth: u32,
}

impl Rule {
    /// Reads an element of `x-kubernetes-validations`.
    pub fn compile(value: &Value) -> Result<Self, String> {
        let source = json::text(value, &["rule"]);
        let compile = |source: &str| {
            let program = std::panic::catch_unwind(|| Program::compile(source));
            program
                .map_err(|_| format!("rule {source:?}: cannot be read"))?
                .map_err(|errors| format!("rule {source:?}: {errors}"))
        };
        let program = compile(source)?;
        let (size, depth) = cost(&program.expression().expr);
        let transition = program.references().has_variable("oldSelf");
        let text = |name: &str| match json::text(value, &[name]) {
            "" => None,
            text => Some(text),
        };
        Ok(Self {
            message: text("message").map(Box::from),
            message_expression: text("messageExpression").map(compile).transpose()?,
            field_path: text("fieldPath").map(Box::from),
            kind: match text("reason") {
                Some("FieldValueRequired") => FieldErrorKind::Required,
                Some("FieldValueForbidden") => FieldErrorKind::Forbidden,
                Some("FieldValueDuplicate") => FieldErrorKind::Duplicate,
                _ => FieldErrorKind::Invalid,
            },
            optional_old: value.get("optionalOldSelf") == Some(&Value::Bool(true)),
            source: source.into(),
            program,
            transition,
            size,
            depth,
        })
    }
}

/// Nodes of an expression and the depth of its loops.
fn cost(expr: &Expr) -> (u64, u32) {
    let mut children: Vec<&Expr> = Vec::new();
    let mut own = 0;
    match expr {
        Expr::Call(call) => {
            children.extend(call.target.iter().map(|target| &target.expr));
            children.extend(call.args.iter().map(|arg| &arg.expr));
        }
        Expr::Comprehension(comprehension) => {
            let (size, depth) = cost(&comprehension.iter_range.expr);
            let inside = [
                &comprehension.accu_init,
                &comprehension.loop_cond,
                &comprehension.loop_step,
                &comprehension.result,
            ]
            .map(|expr| cost(&expr.expr));
            let inner = inside.iter().map(|(_, depth)| *depth).max().unwrap_or(0);
            let sizes: u64 = inside.iter().map(|(size, _)| *size).sum();
            return (1 + size + sizes, depth.max(inner + 1));
        }
        Expr::List(list) => children.extend(list.elements.iter().map(|item| &item.expr)),
        Expr::Select(select) => children.push(&select.operand.expr),
        Expr::Map(map) => {
            for entry in &map.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    children.extend([&entry.key.expr, &entry.value.expr]);
                }
            }
        }
        Expr::Struct(object) => {
            for entry in &object.entries {
                if let EntryExpr::StructField(field) = &entry.expr {
                    children.push(&field.value.expr);
                }
            }
        }
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => own = 1,
    }
    let costs: Vec<_> = children.into_iter().map(cost).collect();
    (
        own + 1 + costs.iter().map(|(size, _)| *size).sum::<u64>(),
        costs.iter().map(|(_, depth)| *depth).max().unwrap_or(0),
    )
}

/// Adds the rules of a value, and of everything in it, that do not hold. Call it only with a value
/// that is valid by the rest of its schema.
pub fn check(schema: &Schema, value: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let mut walk = Walk {
        left: OBJECT_BUDGET,
        errors,
    };
    walk.node(schema, value, old, &mut Path::default());
}

struct Walk<'a> {
    left: u64,
    errors: &'a mut Vec<FieldError>,
}

impl Walk<'_> {
    fn node(&mut self, schema: &Schema, value: &Value, old: Option<&Value>, path: &mut Path) {
        if !schema.has_cel || self.errors.len() >= MOST_ERRORS {
            return;
        }
        if let Some(rules) = &schema.rules
            && !rules.cel.is_empty()
        {
            self.rules(&rules.cel, schema, value, old, path);
        }
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    if let Some(known) = schema.property(name) {
                        let old = old.and_then(|old| old.get(name));
                        path.field(name, |path| self.node(known, field, old, path));
                    }
                }
            }
            Value::Array(items) => {
                let Some(known) = &schema.items else { return };
                for (index, item) in items.iter().enumerate() {
                    let old = old.and_then(|old| counterpart(schema, item, old));
                    path.index(index, |path| self.node(known, item, old, path));
                }
            }
            _ => {}
        }
    }

    fn rules(
        &mut self,
        rules: &[Rule],
        schema: &Schema,
        value: &Value,
        old: Option<&Value>,
        path: &mut Path,
    ) {
        let nodes = nodes(value) + old.map_or(0, nodes);
        let this = convert(Some(schema), value);
        let before = old.map(|old| convert(Some(schema), old));
        for rule in rules {
            if rule.transition && before.is_none() && !rule.optional_old {
                continue;
            }
            let cost = nodes
                .saturating_pow(rule.depth)
                .saturating_mul(rule.size)
                .saturating_add(nodes);
            if cost > BUDGET || cost > self.left {
                let why = format!("is too large for the rule {:?} to be checked", rule.source);
                self.errors
                    .push(FieldError::invalid(path.as_str(), &short(value), why));
                continue;
            }
            self.left -= cost;
            let mut context = Context::default();
            context.add_variable_from_value("self", this.clone());
            if let Some(before) = &before {
                context.add_variable_from_value("oldSelf", before.clone());
            } else if rule.optional_old {
                context.add_variable_from_value("oldSelf", cel::Value::Null);
            }
            let why = match run(&rule.program, &context) {
                Ok(cel::Value::Bool(true)) => continue,
                Ok(cel::Value::Bool(false)) => rule.explain(&context),
                Ok(other) => format!("rule {:?} gave {other:?}, not true or false", rule.source),
                Err(reason) => format!("rule {:?} failed: {reason}", rule.source),
            };
            self.errors.push(rule.error(path, value, &why));
        }
    }
}

/// The evaluator has been seen to panic on odd input; that must cost one request, not the process.
fn run(program: &Program, context: &Context<'_, '_>) -> Result<cel::Value, String> {
    std::panic::catch_unwind(AssertUnwindSafe(|| program.execute(context)))
        .map_err(|_| "the expression cannot be evaluated".to_owned())?
        .map_err(|error| error.to_string())
}

impl Rule {
    fn explain(&self, context: &Context<'_, '_>) -> String {
        let computed = self.message_expression.as_ref();
        if let Some(Ok(cel::Value::String(text))) = computed.map(|program| run(program, context))
            && !text.is_empty()
        {
            return text.to_string();
        }
        match &self.message {
            Some(message) => message.to_string(),
            None => format!("failed rule: {}", self.source),
        }
    }

    fn error(&self, path: &Path, value: &Value, why: &str) -> FieldError {
        let mut field = path.as_str().to_owned();
        if let Some(below) = &self.field_path {
            field.push_str(below);
            if path.as_str().is_empty() {
                field = field.trim_start_matches('.').to_owned();
            }
        }
        match self.kind {
            FieldErrorKind::Required => FieldError::required(field, why),
            FieldErrorKind::Forbidden => FieldError::forbidden(field, why),
            FieldErrorKind::Duplicate => FieldError::duplicate(field, &short(value)),
            _ => FieldError::invalid(field, &short(value), why),
        }
    }
}

/// The element of the old list with the same keys.
fn counterpart<'a>(schema: &Schema, item: &Value, old: &'a Value) -> Option<&'a Value> {
    let ListType::Map(keys) = &schema.list else {
        return None;
    };
    let mut old = old.as_array()?.iter();
    old.find(|old| keys.iter().all(|key| old.get(&**key) == item.get(&**key)))
}

fn nodes(value: &Value) -> u64 {
    1 + match value {
        Value::Object(fields) => fields.values().map(nodes).sum(),
        Value::Array(items) => items.iter().map(nodes).sum(),
        // Texts are searched by rules, too.
        Value::String(text) => text.len() as u64 / 16,
        _ => 0,
    }
}

/// A JSON value as rules see it. Integers are `int`, and `number` fields are always `double`.
fn convert(schema: Option<&Schema>, value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(flag) => cel::Value::Bool(*flag),
        Value::Number(number) => {
            let double = schema.is_some_and(|schema| schema.kind == Type::Number);
            match number.as_i64().filter(|_| !double) {
                Some(int) => cel::Value::Int(int),
                None => cel::Value::Float(number.as_f64().unwrap_or_default()),
            }
        }
        Value::String(text) => cel::Value::String(Arc::new(text.clone())),
        Value::Array(items) => {
            let each = schema.and_then(|schema| schema.items.as_deref());
            let items = items.iter().map(|item| convert(each, item));
            cel::Value::List(Arc::new(items.collect()))
        }
        Value::Object(fields) => {
            let is_map = schema.is_none_or(|s| !matches!(s.additional, Additional::None));
            let fields: HashMap<Key, cel::Value> = fields
                .iter()
                .map(|(name, field)| {
                    let below = schema.and_then(|schema| schema.property(name));
                    let name = if is_map { name.clone() } else { escape(name) };
                    let value = convert(below.map(|schema| &**schema), field);
                    (Key::String(Arc::new(name)), value)
                })
                .collect();
            cel::Value::Map(Map {
                map: Arc::new(fields),
            })
        }
    }
}

/// Field names that are no identifiers are spelled so in rules.
fn escape(name: &str) -> String {
    const RESERVED: [&str; 21] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ];
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    if !name.contains(['.', '-', '/']) && !name.contains("__") {
        return name.to_owned();
    }
    name.replace("__", "__underscores__")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__")
}
