//! An explanation as text.

use std::fmt;

use super::{Direction, Explanation, Outcome};
use crate::text::{Ink, plain, table};

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ink = Ink::of(f);
        self.verdict(f, ink)?;
        if let Some(obstacle) = &self.obstacle {
            writeln!(
                f,
                "\n{} {}",
                ink.bold("In the way:"),
                plain(&obstacle.message)
            )?;
            writeln!(
                f,
                "{} {}",
                ink.bold("To change it:"),
                plain(&obstacle.remedy)
            )?;
            if let Some(command) = &obstacle.command {
                writeln!(f, "  {command}")?;
            }
        }
        self.rules(f, ink)?;
        if !self.names.is_empty() {
            writeln!(f, "\n{}", ink.bold("Names:"))?;
            let rows = self
                .names
                .iter()
                .map(|name| vec![plain(&name.known_at), plain(&name.name)]);
            table(f, &rows.collect::<Vec<_>>())?;
        }
        if !self.path.is_empty() {
            writeln!(f, "\n{}", ink.bold("Path of a request:"))?;
            for (i, hop) in self.path.iter().enumerate() {
                writeln!(f, "  {}. {}", i + 1, plain(&hop.at))?;
                for line in &hop.does {
                    writeln!(f, "       {}", plain(line))?;
                }
            }
        }
        Ok(())
    }
}

impl Explanation {
    fn verdict(&self, f: &mut fmt::Formatter<'_>, ink: Ink) -> fmt::Result {
        let (is, to) = match self.direction {
            Direction::Export => ("exported", "to"),
            Direction::Import => ("imported", "from"),
        };
        let state = match (self.shared, &self.obstacle) {
            (true, None) => ink.good(format!("is {is}")),
            (true, Some(_)) => ink.doubtful(format!("is {is}, and calls may fail")),
            (false, _) => ink.bad(format!("is not {is}")),
        };
        let service = ink.bold(plain(&self.service));
        let peer = plain(&self.peer);
        writeln!(f, "{service} {state} ({to} {peer})")
    }

    fn rules(&self, f: &mut fmt::Formatter<'_>, ink: Ink) -> fmt::Result {
        let Some(set) = &self.set else { return Ok(()) };
        let kind = match self.direction {
            Direction::Export => "ExportedServiceSet",
            Direction::Import => "ImportedServiceSet",
        };
        let title = ink.bold(format!("Rules of the {kind} {set}, in order:"));
        writeln!(f, "\n{title}")?;
        if self.rules.is_empty() {
            return writeln!(f, "  none");
        }
        let rows = self.rules.iter().map(|trial| {
            let outcome = match &trial.outcome {
                Outcome::Decides => ink.good("decides"),
                Outcome::Misses(why) => format!("misses: {}", plain(why)),
                Outcome::Broken(why) => ink.bad(format!("cannot be read: {}", plain(why))),
                Outcome::NotReached => "not reached".to_owned(),
            };
            vec![trial.field.clone(), plain(&trial.selects), outcome]
        });
        table(f, &rows.collect::<Vec<_>>())
    }
}
