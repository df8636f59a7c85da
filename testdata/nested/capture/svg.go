package main

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// What a picture looks like, in pixels and seconds.
const (
	cellWidth  = 8.4
	lineHeight = 18
	fontSize   = 14
	margin     = 14
	barHeight  = 30 // of the title
	footHeight = 26 // of the caption

	frameTime = 0.1 // changes within it are one
	restTime  = 6   // the end stays that long before it begins anew
)

// palette are the colours 1 to 16.
var palette = [16]string{
	"#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#b1bac4",
	"#6e7681", "#ffa198", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#ffffff",
}

// The terminal's own colours.
const (
	paper = "#0d1117"
	ink   = "#e6edf3"
)

// fonts are those that the browsers' systems have, all of fixed width.
const fonts = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"

// forever is the end of what is not overwritten.
var forever = math.Inf(1)

// run is text in one style that stands in a line for some time.
type run struct {
	row, col   int // on the tape
	text       []Cell
	from, till float64
}

// window is where the screen stands on the tape from a time on.
type window struct {
	at  float64
	top int
}

// tape is a recording as what is seen where and when.
type tape struct {
	runs    []run
	windows []window // the first at 0
	lines   int
	end     float64
}

// layOut plays a recording and notes how the tape of its lines changes.
func layOut(c *Cast) *tape {
	t := &tape{windows: []window{{}}}
	s := &Screen{Cols: c.Cols, Rows: c.Rows}
	var before [][]Cell
	live := map[int][]run{} // of each line
	show := func(at float64) {
		for row := range max(len(s.Lines), len(before)) {
			var old, now []Cell
			if row < len(before) {
				old = before[row]
			}
			if row < len(s.Lines) {
				now = s.Lines[row]
			}
			if !slices.Equal(old, now) {
				live[row] = t.change(live[row], old, now, row, at)
			}
		}
		before = before[:0]
		for _, line := range s.Lines {
			before = append(before, slices.Clone(line))
		}
		if last := t.windows[len(t.windows)-1]; last.top != s.Top {
			t.windows = append(t.windows, window{at, s.Top})
		}
		t.end = at
	}
	at := 0.0
	for _, ev := range c.Events {
		if next := math.Ceil(ev.Time/frameTime-1e-6) * frameTime; next > at {
			show(at)
			at = next
		}
		if ev.Kind == kindOutput {
			_, _ = s.Write([]byte(ev.Data))
		}
	}
	show(at)
	for _, runs := range live {
		t.runs = append(t.runs, runs...)
	}
	t.lines = len(s.Lines)
	slices.SortFunc(t.runs, func(a, b run) int {
		return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.till, b.till), cmp.Compare(a.row, b.row), cmp.Compare(a.col, b.col))
	})
	return t
}

// change ends the runs of a line that are no longer there at a time, and returns
// those that are: what stays the same from the line's beginning stays as it is.
func (t *tape) change(live []run, old, now []Cell, row int, at float64) []run {
	same := 0
	for same < min(len(old), len(now)) && old[same] == now[same] {
		same++
	}
	var kept []run
	for _, r := range live {
		if r.col+len(r.text) <= same {
			kept = append(kept, r)
			continue
		}
		if r.from < at {
			gone := r
			gone.till = at
			t.runs = append(t.runs, gone)
		}
		if r.col < same {
			r.text, r.from = r.text[:same-r.col], at
			kept = append(kept, r)
		}
	}
	for i := same; i < len(now); {
		j := i + 1
		for j < len(now) && now[j].Style == now[i].Style && !gap(now[j:]) {
			j++
		}
		from, to := i, j
		for from < to && now[from].blank() {
			from++
		}
		for to > from && now[to-1].blank() {
			to--
		}
		if from < to {
			kept = append(kept, run{row, from, slices.Clone(now[from:to]), at, forever})
		}
		i = j
	}
	return kept
}

// gap says whether cells begin with more than one blank, at which text is split: not
// every program that draws SVG keeps them.
func gap(cells []Cell) bool {
	return len(cells) > 1 && cells[0].blank() && cells[1].blank()
}

// drawing writes an SVG.
type drawing struct {
	b     bytes.Buffer
	whole float64           // seconds of a round
	names map[string]string // of keyframes, by their text
	css   strings.Builder
}

// draw writes a recording as a picture that moves: an SVG 1.1 with CSS animations
// and no script. Where nothing moves it shows the end: so it does to a reader who
// wants no motion, and to a program that knows no animations.
func draw(w io.Writer, c *Cast, caption string) error {
	t := layOut(c)
	d := &drawing{whole: t.end + restTime, names: map[string]string{}}
	last := t.windows[len(t.windows)-1].top
	rows := min(max(t.lines, 1), c.Rows)
	inner := rows * lineHeight
	width := int(math.Ceil(float64(c.Cols)*cellWidth)) + 2*margin
	height := barHeight + inner + margin + footHeight

	var body bytes.Buffer
	d.b, body = body, d.b
	d.lines(t)
	d.b, body = body, d.b

	scroll := d.scroll(t)
	fmt.Fprintf(&d.b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" font-family="%s" font-size="%d" fill="%s">`+"\n",
		width, height, width, height, fonts, fontSize, ink)
	fmt.Fprintf(&d.b, "<title>%s</title>\n<style>\n", escape(c.Title))
	d.b.WriteString("text{white-space:pre}\n")
	d.b.WriteString(d.styles(t))
	fmt.Fprintf(&d.b, "g{animation:%ss step-end infinite}\n.o{visibility:hidden}\n", number(d.whole))
	d.b.WriteString(d.css.String())
	d.b.WriteString("@media(prefers-reduced-motion:reduce){g{animation:none!important}}\n</style>\n")
	fmt.Fprintf(&d.b, `<rect width="%d" height="%d" rx="8" fill="%s"/>`+"\n", width, height, paper)
	for i, colour := range []string{"#ff5f57", "#febc2e", "#28c840"} {
		fmt.Fprintf(&d.b, `<circle cx="%d" cy="15" r="5" fill="%s"/>`, 20+i*18, colour)
	}
	fmt.Fprintf(&d.b, "\n"+`<text x="%d" y="20" text-anchor="middle" fill="#8b949e">%s</text>`+"\n", width/2, escape(c.Title))
	fmt.Fprintf(&d.b, `<text x="%d" y="%d" text-anchor="end" fill="#8b949e" font-size="11">%s</text>`+"\n", width-margin, height-10, escape(caption))
	fmt.Fprintf(&d.b, `<svg x="%d" y="%d" width="%d" height="%d" overflow="hidden" xml:space="preserve">`, margin, barHeight, width-2*margin, inner)
	fmt.Fprintf(&d.b, `<g transform="translate(0 %d)"%s>`+"\n", -last*lineHeight, scroll)
	_, _ = d.b.ReadFrom(&body)
	d.b.WriteString("</g></svg>\n</svg>\n")
	_, err := d.b.WriteTo(w)
	return err
}

// lines writes the runs, those of the same time together.
func (d *drawing) lines(t *tape) {
	for i := 0; i < len(t.runs); {
		j := i
		for j < len(t.runs) && t.runs[j].from == t.runs[i].from && t.runs[j].till == t.runs[i].till {
			j++
		}
		r := t.runs[i]
		switch {
		case !math.IsInf(r.till, 1):
			name := d.keyframes(fmt.Sprintf("%s{visibility:visible}%s{visibility:hidden}", d.percent(r.from), d.percent(r.till)))
			fmt.Fprintf(&d.b, `<g class="o" style="animation-name:%s">`, name)
		case r.from > 0:
			name := d.keyframes(fmt.Sprintf("0%%{visibility:hidden}%s{visibility:visible}", d.percent(r.from)))
			fmt.Fprintf(&d.b, `<g style="animation-name:%s">`, name)
		default:
			d.b.WriteString("<g>")
		}
		for ; i < j; i++ {
			d.run(t.runs[i])
		}
		d.b.WriteString("</g>\n")
	}
}

// run writes one run.
func (d *drawing) run(r run) {
	x, style := float64(r.col)*cellWidth, r.text[0].Style
	wide := float64(len(r.text)) * cellWidth
	if _, bg := colours(style); bg != "" {
		fmt.Fprintf(&d.b, `<rect x="%s" y="%d" width="%s" height="%d" fill="%s"/>`, number(x), r.row*lineHeight, number(wide), lineHeight, bg)
	}
	var text strings.Builder
	for _, c := range r.text {
		text.WriteRune(max(c.R, ' '))
	}
	fmt.Fprintf(&d.b, `<text x="%s" y="%d"`, number(x), r.row*lineHeight+lineHeight-5)
	if len(r.text) > 1 { // whatever font there is
		fmt.Fprintf(&d.b, ` textLength="%s"`, number(wide))
	}
	if name := styleName(style); name != "" {
		fmt.Fprintf(&d.b, ` class="%s"`, name)
	}
	fmt.Fprintf(&d.b, `>%s</text>`, escape(text.String()))
}

// scroll is the attribute that moves the window, "" if it stays.
func (d *drawing) scroll(t *tape) string {
	if len(t.windows) == 1 {
		return ""
	}
	var b strings.Builder
	for _, w := range t.windows {
		fmt.Fprintf(&b, "%s{transform:translateY(%dpx)}", d.percent(w.at), -w.top*lineHeight)
	}
	return fmt.Sprintf(` style="animation-name:%s"`, d.keyframes(b.String()))
}

// keyframes is the name of the animation with that text.
func (d *drawing) keyframes(text string) string {
	name, ok := d.names[text]
	if !ok {
		name = "k" + strconv.FormatInt(int64(len(d.names)), 36)
		d.names[text] = name
		fmt.Fprintf(&d.css, "@keyframes %s{%s}\n", name, text)
	}
	return name
}

// percent is a time as a part of the round.
func (d *drawing) percent(at float64) string {
	return strconv.FormatFloat(math.Round(at/d.whole*1e4)/1e2, 'f', -1, 64) + "%"
}

// styles are the rules for the styles that occur.
func (d *drawing) styles(t *tape) string {
	rules := map[string]string{}
	for _, r := range t.runs {
		style := r.text[0].Style
		name := styleName(style)
		if name == "" {
			continue
		}
		var rule strings.Builder
		if fg, _ := colours(style); fg != ink {
			rule.WriteString("fill:" + fg + ";")
		}
		if style.Bold {
			rule.WriteString("font-weight:bold;")
		}
		if style.Faint {
			rule.WriteString("opacity:.6;")
		}
		rules[name] = fmt.Sprintf(".%s{%s}\n", name, strings.TrimSuffix(rule.String(), ";"))
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(rules)) {
		b.WriteString(rules[name])
	}
	return b.String()
}

// colours are those of the text and of what is behind it, "" for nothing.
func colours(s Style) (fg, bg string) {
	fg = ink
	if s.FG > 0 {
		fg = palette[s.FG-1]
	}
	if s.BG > 0 {
		bg = palette[s.BG-1]
	}
	if s.Reverse {
		if bg == "" {
			bg = paper
		}
		fg, bg = bg, fg
	}
	return fg, bg
}

// styleName is the class of a style's text, "" for the terminal's own.
func styleName(s Style) string {
	name := ""
	if fg, _ := colours(s); fg != ink {
		name = "c" + strings.TrimPrefix(fg, "#")
	}
	if s.Bold {
		name += "b"
	}
	if s.Faint {
		name += "f"
	}
	return name
}

func number(f float64) string { return strconv.FormatFloat(math.Round(f*10)/10, 'f', -1, 64) }

// escape is text for XML; what XML 1.0 can't say becomes U+FFFD.
func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s))
	return b.String()
}
