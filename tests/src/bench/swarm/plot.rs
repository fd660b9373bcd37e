//! A drawing of who was done when.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;

/// Room around the curves: left, right, top, bottom.
const MARGIN: [f64; 4] = [60.0, 20.0, 60.0, 50.0];

/// Between how many steps an axis is divided at most.
const STEPS: f64 = 8.0;

/// Colours of the runs, used again after the last.
const COLOURS: [&str; 5] = ["#0b6e99", "#d9730d", "#448361", "#9065b0", "#787774"];

/// What is drawn.
pub(crate) struct Plot {
    /// What stands above it.
    pub(crate) title: String,
    /// A line below the title.
    pub(crate) subtitle: String,
    /// Seconds at which a node was done, for each node of each run that was.
    pub(crate) runs: Vec<(String, Vec<f64>)>,
    /// How many nodes there were to be done.
    pub(crate) nodes: usize,
    /// Seconds before which not all can be done.
    pub(crate) bound: f64,
}

impl Plot {
    /// The drawing as SVG: for each run a stair that rises by one whenever a node is done, and the bound as a line.
    pub(crate) fn svg(&self) -> String {
        let latest = self.runs.iter().flat_map(|run| &run.1).copied().fold(self.bound, f64::max);
        let across = step(latest * 1.02);
        let up = step(self.nodes as f64).max(1.0);
        let end = (latest * 1.02 / across).ceil() * across;
        let top = self.nodes as f64;
        let [left, right, above, below] = MARGIN;
        let x = |time: f64| left + time / end * (WIDTH - left - right);
        let y = |nodes: f64| HEIGHT - below - nodes / top * (HEIGHT - above - below);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        let mut text = |x: f64, y: f64, more: &str, words: &str| {
            // Writing to a string does not fail.
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {more}>{}</text>", escaped(words));
        };
        text(left, 22.0, "font-size=\"15\" font-weight=\"bold\"", &self.title);
        text(left, 42.0, "fill=\"#555\"", &self.subtitle);
        text(WIDTH - right, HEIGHT - 12.0, "text-anchor=\"end\"", "seconds");
        text(left, above - 6.0, "text-anchor=\"end\"", "nodes done");
        for time in ticks(across, end) {
            text(x(time), HEIGHT - below + 16.0, "text-anchor=\"middle\"", &number(time));
        }
        for nodes in ticks(up, top) {
            text(left - 6.0, y(nodes) + 4.0, "text-anchor=\"end\"", &number(nodes));
        }
        text(
            x(self.bound) - 4.0,
            y(0.0) - 6.0,
            "text-anchor=\"end\" fill=\"#c4314b\"",
            &format!("bound {:.2} s", self.bound),
        );
        for (i, (name, _)) in self.runs.iter().enumerate() {
            let colour = format!("text-anchor=\"end\" fill=\"{}\"", COLOURS[i % COLOURS.len()]);
            text(WIDTH - right - 4.0, y(0.0) - 6.0 - 16.0 * i as f64, &colour, name);
        }
        let mut line = |points: &[(f64, f64)], more: &str| {
            let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" {more}/>", points.join(" "));
        };
        for nodes in ticks(up, top) {
            line(&[(x(0.0), y(nodes)), (x(end), y(nodes))], "stroke=\"#ddd\"");
        }
        line(&[(x(0.0), y(top)), (x(0.0), y(0.0)), (x(end), y(0.0))], "stroke=\"#333\"");
        line(
            &[(x(self.bound), y(top)), (x(self.bound), y(0.0))],
            "stroke=\"#c4314b\" stroke-dasharray=\"5 4\"",
        );
        for (i, (_, times)) in self.runs.iter().enumerate() {
            let stair: Vec<(f64, f64)> =
                stair(times).into_iter().map(|(time, nodes)| (x(time), y(nodes))).collect();
            line(&stair, &format!("stroke=\"{}\" stroke-width=\"2\"", COLOURS[i % COLOURS.len()]));
        }
        svg + "</svg>\n"
    }
}

/// The corners of a stair that rises by one at each time.
fn stair(times: &[f64]) -> Vec<(f64, f64)> {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    let mut corners = vec![(0.0, 0.0)];
    for (done, &time) in times.iter().enumerate() {
        corners.push((time, done as f64));
        corners.push((time, done as f64 + 1.0));
    }
    corners
}

/// A round step that divides an axis of this length into a few.
fn step(length: f64) -> f64 {
    let least = (length / STEPS).max(f64::MIN_POSITIVE);
    let ten = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|times| times * ten).into_iter().find(|step| *step >= least).unwrap_or(least)
}

fn ticks(step: f64, end: f64) -> impl Iterator<Item = f64> {
    (0..=(end / step + 1e-9) as u32).map(move |i| f64::from(i) * step)
}

fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(runs: Vec<(String, Vec<f64>)>) -> String {
        Plot { title: "S1 <cold> & herd".into(), subtitle: String::new(), runs, nodes: 3, bound: 2.0 }.svg()
    }

    #[test]
    fn a_stair_rises_by_one_for_each_node_in_the_order_of_time() {
        let corners = stair(&[3.0, 1.0]);
        assert_eq!(corners, [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (3.0, 1.0), (3.0, 2.0)]);
    }

    #[test]
    fn every_run_and_the_bound_are_drawn_inside_the_frame() {
        let svg = plot(vec![("wherry".into(), vec![2.1, 2.5, 9.0]), ("again".into(), vec![])]);
        assert_eq!(svg.matches("stroke-width=\"2\"").count(), 2);
        assert_eq!(svg.matches("stroke-dasharray").count(), 1);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        for points in svg.split("points=\"").skip(1) {
            for point in points.split('"').next().unwrap().split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((0.0..=WIDTH).contains(&x) && (0.0..=HEIGHT).contains(&y), "{point}");
            }
        }
    }

    #[test]
    fn words_cannot_break_the_drawing() {
        let svg = plot(vec![]);
        assert!(svg.contains("S1 &lt;cold&gt; &amp; herd"));
    }

    #[test]
    fn axes_have_a_few_round_steps() {
        assert_eq!([step(0.09), step(7.0), step(64.0), step(35.0)], [0.02, 1.0, 10.0, 5.0]);
        assert_eq!(ticks(0.02, 0.1).count(), 6);
        assert_eq!([number(0.02), number(30.0), number(2.5)], ["0.02", "30", "2.5"]);
    }
}
