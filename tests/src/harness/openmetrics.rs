//! A strict reader of OpenMetrics text (version 1.0.0), so that what a real scraper would refuse is refused here:
//! <https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>.

use std::collections::{BTreeMap, BTreeSet};

/// Labels by name.
pub type Labels = BTreeMap<String, String>;

/// One line with a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The whole name, with `_total` and its like.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its value.
    pub value: f64,
}

/// All samples of a scrape.
#[derive(Debug, Clone, Default)]
pub struct Scrape(Vec<Sample>);

impl Scrape {
    /// The samples of this name whose labels include these.
    pub fn of<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        let fits = move |s: &&Sample| labels.iter().all(|(k, v)| s.labels.get(*k).is_some_and(|have| have == v));
        self.0.iter().filter(move |s| s.name == name).filter(fits)
    }

    /// The sum of [`Self::of`]; 0 where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.of(name, labels).map(|s| s.value).sum()
    }
}

/// One `# TYPE` and what follows it.
#[derive(Default)]
struct Family {
    name: String,
    kind: String,
    unit: String,
    help: bool,
    sampled: bool,
}

/// Reads a scrape; the first broken rule in words.
pub fn parse(text: &str) -> Result<Scrape, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("the text does not end in \"# EOF\\n\"")?;
    let (mut all, mut seen, mut families) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let mut family = Family::default();
    for (n, line) in body.split_terminator('\n').enumerate() {
        let wrong = |why: &str| Err(format!("line {}: {why}: {line}", n + 1));
        if let Some(meta) = line.strip_prefix("# ") {
            let mut words = meta.splitn(3, ' ');
            let (Some(what), Some(name)) = (words.next(), words.next()) else { return wrong("no metadata") };
            let rest = words.next().unwrap_or("");
            if family.name != name || family.sampled {
                if !families.insert(name.to_owned()) {
                    return wrong("a family in two pieces");
                }
                family = Family { name: name.to_owned(), ..Family::default() };
            }
            match what {
                "TYPE" if family.kind.is_empty() => rest.clone_into(&mut family.kind),
                "HELP" if !family.help => family.help = true,
                "UNIT" if name.ends_with(&format!("_{rest}")) => rest.clone_into(&mut family.unit),
                _ => return wrong("not TYPE, HELP or UNIT, twice, or a unit that the name does not end in"),
            }
            continue;
        }
        let sample = match sample(line) {
            Ok(sample) => sample,
            Err(why) => return wrong(&why),
        };
        let suffix = sample.name.strip_prefix(&family.name).unwrap_or("?");
        let fits = match family.kind.as_str() {
            "counter" => matches!(suffix, "_total" | "_created") && sample.value >= 0.0,
            "gauge" => suffix.is_empty(),
            "histogram" => matches!(suffix, "_bucket" | "_count" | "_sum"),
            "info" => suffix == "_info" && sample.value == 1.0,
            _ => false,
        };
        if !fits {
            return wrong(&format!("no sample of {} \"{}\"", family.kind, family.name));
        }
        if !seen.insert((sample.name.clone(), sample.labels.clone())) {
            return wrong("the same series twice");
        }
        family.sampled = true;
        all.push(sample);
    }
    let scrape = Scrape(all);
    histograms(&scrape)?;
    Ok(scrape)
}

fn is_name(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    first && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// NAME{LABEL="VALUE",…} NUMBER, with no exemplar and no timestamp, which we do not send.
fn sample(line: &str) -> Result<Sample, String> {
    let at = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(at);
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"").ok_or("a label without a value")?;
            let mut value = String::new();
            let mut chars = after.chars();
            loop {
                match chars.next().ok_or("a label value without its end")? {
                    '"' => break,
                    '\\' => value.push(match chars.next() {
                        Some('n') => '\n',
                        Some(c @ ('"' | '\\')) => c,
                        other => return Err(format!("a wrong escape {other:?}")),
                    }),
                    c => value.push(c),
                }
            }
            if !is_name(label) || labels.insert(label.to_owned(), value).is_some() {
                return Err(format!("a wrong label {label}, or twice"));
            }
            rest = chars.as_str();
            rest = match rest.strip_prefix(',') {
                Some(more) if !more.starts_with('}') => more,
                None if rest.starts_with('}') => rest,
                _ => return Err("wrong labels".to_owned()),
            };
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').and_then(|v| v.parse::<f64>().ok()).ok_or("no number")?;
    if !is_name(name) {
        return Err(format!("a wrong name {name}"));
    }
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// Buckets grow, the last is `+Inf`, and it is the count.
fn histograms(scrape: &Scrape) -> Result<(), String> {
    let mut buckets: BTreeMap<(String, Labels), Vec<(f64, f64)>> = BTreeMap::new();
    for sample in &scrape.0 {
        if let Some(name) = sample.name.strip_suffix("_bucket") {
            let mut labels = sample.labels.clone();
            let bound = labels.remove("le").ok_or("a bucket without le")?;
            let bound =
                if bound == "+Inf" { f64::INFINITY } else { bound.parse().map_err(|_| format!("le={bound}"))? };
            buckets.entry((name.to_owned(), labels)).or_default().push((bound, sample.value));
        }
    }
    for ((name, labels), buckets) in buckets {
        let grows = buckets.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1);
        let of = |suffix: &str| {
            let whole = format!("{name}{suffix}");
            scrape.0.iter().find(|s| s.name == whole && s.labels == labels).map(|s| s.value)
        };
        let last = buckets.last().copied();
        if !grows || last != of("_count").map(|count| (f64::INFINITY, count)) || of("_sum").is_none() {
            return Err(format!("the histogram {name} {labels:?} contradicts itself: {buckets:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a A.\n# TYPE a counter\na_total{x=\"1\\\"\\n\",y=\"\"} 3\na_total{x=\"2\"} 4\n\
        # TYPE d_seconds histogram\n# UNIT d_seconds seconds\nd_seconds_sum 1.5\nd_seconds_count 2\n\
        d_seconds_bucket{le=\"1.0\"} 1\nd_seconds_bucket{le=\"+Inf\"} 2\n# TYPE g gauge\ng -1\n# EOF\n";

    #[test]
    fn right_text_is_read() {
        let scrape = parse(GOOD).unwrap();
        assert_eq!(scrape.sum("a_total", &[]), 7.0);
        assert_eq!(scrape.sum("a_total", &[("x", "1\"\n")]), 3.0);
        assert_eq!(scrape.of("g", &[]).count(), 1);
    }

    #[test]
    fn every_broken_rule_is_seen() {
        for (right, wrong) in [
            ("# EOF\n", ""),
            ("a_total{x=\"2\"} 4", "a{x=\"2\"} 4"),
            ("a_total{x=\"2\"} 4", "a_total{x=\"2\"} -4"),
            ("a_total{x=\"2\"} 4", "a_total{x=\"1\\\"\\n\",y=\"\"} 4"),
            ("a_total{x=\"2\"} 4", "a_total{x=\"2} 4"),
            ("a_total{x=\"2\"} 4", "a_total{x=\"2\",} 4"),
            ("a_total{x=\"2\"} 4", "a_total{x=\"2\"} four"),
            ("\\n", "\\t"),
            ("# TYPE a counter\n", ""),
            ("# TYPE g gauge\ng -1\n", "# TYPE g gauge\ng -1\n# TYPE a gauge\n"),
            ("{le=\"1.0\"} 1", "{le=\"1.0\"} 3"),
            ("{le=\"+Inf\"} 2", "{le=\"2.0\"} 2"),
            ("d_seconds_count 2", "d_seconds_count 3"),
            ("UNIT d_seconds seconds", "UNIT d_seconds bytes"),
        ] {
            assert!(GOOD.contains(right), "{right}");
            assert!(parse(&GOOD.replace(right, wrong)).is_err(), "{right} -> {wrong}");
        }
    }
}
