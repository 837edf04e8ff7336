//! `backstay catalogue`: what databases consisted of, what needs what, and what changed.

use backstay_ops::nearest::Everywhere;
use backstay_ops::units::{count, format_size, group};
use backstay_ops::{Error, ErrorKind, Found, moment};
use backstay_postgres::logical::Contents;
use backstay_postgres::logical::catalogue::{Catalogue, Object, ObjectKind};
use backstay_postgres::logical::drift::{Change, ChangeType, Difference, Moment, drift, history};
use backstay_postgres::logical::graph::Graph;
use backstay_repo::{Snapshot, SourceKind};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::present::{printable, snapshot_document};
use crate::app::{App, Outcome, Result};
use crate::output::{Paint, Style};
use crate::table::{Cell, Table, facts};

/// Show what databases consist of: objects, sizes, dependencies, changes
#[derive(Debug, Args)]
#[command(
    override_usage = "backstay catalogue <SOURCE|SNAPSHOT> [OBJECT] [OPTIONS]",
    after_help = "Examples:
  backstay catalogue shop-logical
  backstay catalogue shop-logical public.orders
  backstay catalogue shop-logical --graph svg > shop.svg
  backstay catalogue 3f2a9c1b --drift shop-logical
  backstay catalogue shop-logical --history public.orders"
)]
pub struct CatalogueArgs {
    /// A source of kind postgres-logical (its newest snapshot), or a snapshot
    #[arg(value_name = "SOURCE|SNAPSHOT")]
    what: String,

    /// Only this object: what it is, what it needs, and what needs it
    object: Option<String>,

    /// Only this database
    #[arg(long, value_name = "NAME")]
    database: Option<String>,

    /// Write the dependencies as a graph: for Graphviz, or as a picture. With OBJECT, those of it
    #[arg(long, value_name = "FORMAT")]
    graph: Option<Format>,

    /// What is different in another, later snapshot
    #[arg(long, value_name = "SOURCE|SNAPSHOT", conflicts_with_all = ["graph", "history"])]
    drift: Option<String>,

    /// The versions of one object over all snapshots of the source
    #[arg(long, value_name = "OBJECT", conflicts_with_all = ["graph", "object"])]
    history: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Dot,
    Svg,
}

pub fn run(args: &CatalogueArgs, app: &App) -> Result<Outcome> {
    if args.graph.is_some() && app.output.json {
        return Err(Error::usage(
            "`--graph` writes the graph itself, which is no JSON",
            "leave --json or --graph out; without --graph, the document has `dependencies`",
        ));
    }
    let context = app.context()?;
    let everywhere = context.everywhere()?;
    let found = everywhere.find(context, &args.what)?;
    app.show_warnings();
    if let Some(object) = &args.history {
        return versions(args, app, &everywhere, &found, object);
    }
    let contents = open(&everywhere, &found)?;
    if let Some(other) = &args.drift {
        let later = everywhere.find(context, other)?;
        return compare(args, app, &everywhere, (&found, &contents), &later);
    }
    let mut catalogues = Vec::new();
    for database in databases(args, &contents)? {
        catalogues.push(contents.catalogue(&database)?);
    }
    match (&args.object, args.graph) {
        (_, Some(format)) => draw(args, app, &catalogues, format),
        (Some(name), None) => one_object(app, &found, &catalogues, name),
        (None, None) => overview(app, &found, &contents, &catalogues),
    }
}

fn open(everywhere: &Everywhere, found: &Found) -> Result<Contents> {
    let fallback = everywhere.fallback(found);
    Ok(Contents::open(&found.repository, &found.snapshot, fallback)?)
}

fn databases(args: &CatalogueArgs, contents: &Contents) -> Result<Vec<String>> {
    let asked: Vec<String> = args.database.iter().cloned().collect();
    Ok(contents.choose(&asked)?.into_iter().map(str::to_owned).collect())
}

fn overview(
    app: &App,
    found: &Found,
    contents: &Contents,
    catalogues: &[Catalogue],
) -> Result<Outcome> {
    app.output.document(&json!({
        "snapshot": snapshot_document(&found.snapshot, &found.name),
        "server": contents.server,
        "databases": catalogues,
    }))?;
    for catalogue in catalogues {
        let paint = app.output.paint;
        app.output.answer(format!(
            "{}  {} on PostgreSQL {}, {}",
            paint.paint(Style::Bold, printable(&catalogue.database)),
            count(catalogue.objects.len() as u64, "object", "objects"),
            catalogue.server,
            moment::local(catalogue.time, &app.zone()),
        ))?;
        let mut table = Table::new(&["kind", "name", ">rows", ">size", ">indexes", "owner"]);
        for object in catalogue.objects.iter().filter(|object| !object.kind.is_part()) {
            let sizes = object.statistics.as_ref();
            let size = |bytes: Option<u64>| bytes.map(format_size).unwrap_or_default();
            table.row([
                Cell::new(object.kind.as_str(), Style::Dim),
                printable(&named(object)).into(),
                sizes
                    .and_then(|it| it.rows)
                    .map(|rows| format!("~{}", group(rows)))
                    .unwrap_or_default()
                    .into(),
                size(sizes.map(|it| it.bytes)).into(),
                size(sizes.map(|it| it.index_bytes).filter(|bytes| *bytes > 0)).into(),
                object.owner.as_deref().map(printable).unwrap_or_default().into(),
            ]);
        }
        app.output.answer(table.render(paint))?;
        let circles = Graph::new(catalogue);
        for circle in circles.circles() {
            let names: Vec<&str> = circle
                .iter()
                .filter_map(|at| Some(circles.nodes.get(*at)?.name.as_str()))
                .collect();
            app.output.answer(format!("They need each other: {}", printable(&names.join(", "))))?;
        }
        app.output.answer("")?;
    }
    Ok(Outcome::Done)
}

/// An extension is nothing without its version.
fn named(object: &Object) -> String {
    match (object.kind, object.facts.get("version")) {
        (ObjectKind::Extension, Some(version)) => format!("{} {version}", object.name),
        _ => object.qualified(),
    }
}

fn no_object(name: &str, catalogues: &[Catalogue]) -> Error {
    let names: Vec<String> = catalogues
        .iter()
        .flat_map(|catalogue| &catalogue.objects)
        .filter(|object| !object.kind.is_part())
        .map(Object::qualified)
        .collect();
    let error = Error::new(ErrorKind::NotFound, format!("there is no object {name:?}"));
    // Most people leave the schema out.
    let last = |name: &String| name.rsplit('.').next().unwrap_or_default().to_owned();
    let plain: Vec<String> = names.iter().map(last).collect();
    let nearest = backstay_ops::config::nearest;
    match nearest(name, &names).or_else(|| nearest(name, &plain)) {
        Some(near) => error.with_hint(format!("did you mean {near:?}?")),
        None => error.with_hint("`backstay catalogue` without a name lists what there is"),
    }
}

fn one_object(app: &App, found: &Found, catalogues: &[Catalogue], name: &str) -> Result<Outcome> {
    let mut documents = Vec::new();
    for catalogue in catalogues {
        let graph = Graph::new(catalogue);
        for at in catalogue.find(name) {
            let Some(object) = catalogue.objects.get(at) else { continue };
            let qualified = object.qualified();
            let node = graph
                .nodes
                .iter()
                .position(|node| node.kind == object.kind && node.name == qualified);
            let list = |reached: Option<std::collections::BTreeMap<usize, usize>>| {
                let mut all: Vec<(usize, String, ObjectKind)> = reached
                    .into_iter()
                    .flatten()
                    .filter_map(|(at, steps)| {
                        let node = graph.nodes.get(at)?;
                        Some((steps, node.name.clone(), node.kind))
                    })
                    .collect();
                all.sort();
                all
            };
            let needs = list(node.map(|node| graph.needs(node)));
            let needed_by = list(node.map(|node| graph.needed_by(node)));
            let parts: Vec<&Object> = catalogue
                .objects
                .iter()
                .filter(|part| {
                    part.kind.is_part()
                        && part.schema == object.schema
                        && part.of.as_ref() == Some(&object.name)
                })
                .collect();
            let steps = |list: &[(usize, String, ObjectKind)]| -> Vec<serde_json::Value> {
                list.iter()
                    .map(
                        |(steps, name, kind)| json!({"object": name, "kind": kind, "steps": steps}),
                    )
                    .collect()
            };
            documents.push(json!({
                "database": catalogue.database,
                "object": object,
                "parts": parts,
                "needs": steps(&needs),
                "needed_by": steps(&needed_by),
                "circular": node.and_then(|at| graph.nodes.get(at)?.circle).is_some(),
            }));
            if !app.output.json {
                describe(app, catalogue, object, &parts, &needs, &needed_by)?;
            }
        }
    }
    if documents.is_empty() {
        return Err(no_object(name, catalogues));
    }
    app.output.document(&json!({
        "snapshot": snapshot_document(&found.snapshot, &found.name),
        "objects": documents,
    }))?;
    Ok(Outcome::Done)
}

fn describe(
    app: &App,
    catalogue: &Catalogue,
    object: &Object,
    parts: &[&Object],
    needs: &[(usize, String, ObjectKind)],
    needed_by: &[(usize, String, ObjectKind)],
) -> Result<()> {
    let paint = app.output.paint;
    app.output.answer(format!(
        "{} in {}",
        paint.paint(Style::Bold, printable(&object.display())),
        printable(&catalogue.database)
    ))?;
    let mut lines: Vec<(&str, String)> = Vec::new();
    let mut add = |name, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            lines.push((name, value));
        }
    };
    add("owner", object.owner.as_deref().map(printable));
    add("comment", object.comment.as_deref().map(printable));
    add("grants", Some(printable(&object.grants.join(", "))));
    if let Some(sizes) = &object.statistics {
        add("rows", sizes.rows.map(|rows| format!("~{}", group(rows))));
        add("size", Some(format_size(sizes.bytes)));
        add("indexes", Some(format_size(sizes.index_bytes)).filter(|_| sizes.index_bytes > 0));
        if let Some(it) = &sizes.activity {
            let number = |n: i64| group(u64::try_from(n).unwrap_or(0));
            add(
                "so far",
                Some(format!(
                    "{} inserted, {} updated, {} deleted; {} live, {} dead",
                    number(it.inserted),
                    number(it.updated),
                    number(it.deleted),
                    number(it.live),
                    number(it.dead)
                )),
            );
        }
    }
    for (name, value) in object.facts.iter().filter(|(name, _)| *name != "definition") {
        add(name, Some(printable(value)));
    }
    app.output.answer(facts(lines, paint))?;
    if !object.columns.is_empty() {
        let mut table = Table::new(&["column", "type", "null", "default", "comment"]);
        for column in &object.columns {
            let identity = column.identity.as_ref().map(|it| format!("identity {it}"));
            let generated = column.generated.as_ref().map(|it| format!("computed: {it}"));
            let default = column.default.clone().or(identity).or(generated).unwrap_or_default();
            table.row([
                printable(&column.name).into(),
                printable(&column.type_).into(),
                if column.nullable { "yes" } else { "no" }.into(),
                printable(&default).into(),
                column.comment.as_deref().map(printable).unwrap_or_default().into(),
            ]);
        }
        app.output.answer(format!("\n{}", table.render(paint)))?;
    }
    if let Some(definition) = object.facts.get("definition") {
        let lines: Vec<String> = definition.lines().map(printable).collect();
        app.output.answer(format!("\n{}", lines.join("\n")))?;
    }
    for part in parts {
        let definition = part.facts.get("definition").cloned().unwrap_or_default();
        app.output.answer(format!(
            "{} {}: {}",
            paint.paint(Style::Dim, part.kind),
            printable(&part.name),
            printable(&definition)
        ))?;
    }
    for (title, list) in [("needs", needs), ("is needed by", needed_by)] {
        for (steps, name, kind) in list {
            let how = if *steps == 1 { "directly" } else { "indirectly" };
            app.output.answer(format!("{title} {} {} ({how})", kind, printable(name)))?;
        }
    }
    app.output.answer("")
}

fn draw(
    args: &CatalogueArgs,
    app: &App,
    catalogues: &[Catalogue],
    format: Format,
) -> Result<Outcome> {
    let [catalogue] = catalogues else {
        let names: Vec<&str> = catalogues.iter().map(|one| one.database.as_str()).collect();
        return Err(Error::usage(
            "the snapshot has several databases",
            format!("say of which one with --database: {}", names.join(", ")),
        ));
    };
    let graph = Graph::new(catalogue);
    let (graph, title) = match &args.object {
        Some(name) => {
            let nodes = graph.find(name);
            if nodes.is_empty() {
                return Err(no_object(name, catalogues));
            }
            (graph.around(&nodes), format!("{} and what it has to do with", printable(name)))
        }
        None => {
            let connected = graph.connected();
            let alone = graph.nodes.len() - connected.nodes.len();
            let more = match alone {
                0 => String::new(),
                some => format!(" ({} more that nothing is linked with)", group(some as u64)),
            };
            (connected, format!("{}{more}", printable(&catalogue.database)))
        }
    };
    let text = match format {
        Format::Dot => graph.dot(),
        Format::Svg => graph.svg(&title),
    };
    app.output.answer(text.trim_end())?;
    Ok(Outcome::Done)
}

fn compare(
    args: &CatalogueArgs,
    app: &App,
    everywhere: &Everywhere,
    (earlier, before): (&Found, &Contents),
    later: &Found,
) -> Result<Outcome> {
    let after = open(everywhere, later)?;
    let mut documents = Vec::new();
    let mut total = 0;
    let (was, is) = (before.databases(), after.databases());
    let asked = |name: &&str| args.database.as_deref().is_none_or(|wanted| wanted == *name);
    for name in was.iter().copied().filter(asked).filter(|name| !is.contains(name)) {
        total += 1;
        app.output.answer(format!("- database {}", printable(name)))?;
        documents.push(json!({"database": name, "change": "removed", "changes": []}));
    }
    for name in is.iter().copied().filter(asked) {
        if !was.contains(&name) {
            total += 1;
            app.output.answer(format!("+ database {}", printable(name)))?;
            documents.push(json!({"database": name, "change": "added", "changes": []}));
            continue;
        }
        let mut changes = drift(&before.catalogue(name)?, &after.catalogue(name)?);
        if let Some(wanted) = &args.object {
            let is = |name: &str| name == wanted || name.ends_with(&format!(".{wanted}"));
            changes.retain(|one| is(&one.object) || one.was.as_deref().is_some_and(is));
        }
        total += changes.len();
        if !changes.is_empty() && !app.output.json {
            app.output.answer(app.output.paint.paint(Style::Bold, printable(name)))?;
            for one in &changes {
                app.output.answer(change_text(one, app.output.paint))?;
            }
        }
        documents.push(json!({"database": name, "change": null, "changes": changes}));
    }
    app.output.document(&json!({
        "a": earlier.snapshot.id,
        "b": later.snapshot.id,
        "databases": documents,
    }))?;
    if total == 0 {
        app.output.answer("No difference.")?;
    }
    Ok(Outcome::Done)
}

fn change_text(change: &Change, paint: Paint) -> String {
    let (mark, style) = match change.change {
        ChangeType::Added => ("+", Style::Green),
        ChangeType::Removed => ("-", Style::Red),
        ChangeType::Changed | ChangeType::Renamed => ("~", Style::Yellow),
    };
    let was = match &change.was {
        Some(was) => format!("  (was {})", printable(was)),
        None => String::new(),
    };
    let mut text =
        format!("{} {} {}{was}", paint.paint(style, mark), change.kind, printable(&change.object));
    for one in &change.what {
        text.push_str(&format!("\n    {}", difference_text(one)));
    }
    text
}

fn difference_text(one: &Difference) -> String {
    let value = |value: &Option<String>| match value {
        None => "nothing".to_owned(),
        // A body of many lines is not shown twice: where it begins to differ tells little.
        Some(value) if value.contains('\n') => count(value.lines().count() as u64, "line", "lines"),
        Some(value) => printable(value),
    };
    format!("{}: {} → {}", printable(&one.field), value(&one.before), value(&one.after))
}

fn versions(
    args: &CatalogueArgs,
    app: &App,
    everywhere: &Everywhere,
    found: &Found,
    name: &str,
) -> Result<Outcome> {
    let source = &found.snapshot.source;
    let mut snapshots: Vec<Snapshot> = everywhere.moments(source, SourceKind::PostgresLogical);
    snapshots.sort_by_key(|snapshot| snapshot.time);
    // With a snapshot named, the history ends there.
    snapshots.retain(|snapshot| snapshot.time <= found.snapshot.time);
    // Of each database, its moments.
    let mut databases: std::collections::BTreeMap<String, Vec<Moment>> =
        std::collections::BTreeMap::new();
    for snapshot in &snapshots {
        let Some(place) = everywhere.at(snapshot) else { continue };
        let contents = open(everywhere, &place)?;
        for database in contents.databases() {
            if args.database.as_deref().is_none_or(|wanted| wanted == database) {
                databases.entry(database.to_owned()).or_default().push(Moment {
                    snapshot: snapshot.id.clone(),
                    catalogue: contents.catalogue(database)?,
                });
            }
        }
    }
    let mut documents = Vec::new();
    let zone = app.zone();
    for (database, moments) in &databases {
        let versions = history(moments, name);
        if versions.is_empty() {
            continue;
        }
        app.output.answer(format!(
            "{} in {}",
            app.output.paint.paint(Style::Bold, printable(name)),
            printable(database)
        ))?;
        for one in &versions {
            let short = one.snapshot.get(..8).unwrap_or(&one.snapshot);
            let when = match one.after {
                Some(after) => format!(
                    "between {} and {}",
                    moment::local(after, &zone),
                    moment::local(one.time, &zone)
                ),
                None => format!("{} or before", moment::local(one.time, &zone)),
            };
            let owner = one.owner.as_deref().map(printable).unwrap_or_default();
            let owner = if owner.is_empty() { owner } else { format!(", owner {owner}") };
            app.output.answer(format!(
                "{}  {}  {when}{owner}",
                app.output.paint.paint(Style::Cyan, short),
                one.change.as_str(),
            ))?;
            for difference in &one.what {
                app.output.answer(format!("            {}", difference_text(difference)))?;
            }
        }
        documents.push(json!({"database": database, "versions": versions}));
    }
    if documents.is_empty() {
        let catalogues: Vec<Catalogue> = databases
            .into_values()
            .filter_map(|mut moments| moments.pop().map(|moment| moment.catalogue))
            .collect();
        return Err(no_object(name, &catalogues));
    }
    app.output.document(&json!({ "source": source, "databases": documents }))?;
    Ok(Outcome::Done)
}
