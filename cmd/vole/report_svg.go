package main

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/vole-vmm/vole/vmm"
)

// phases name the time up to a mark of the timeline, and give it a colour: what vole does itself is
// blue, what the guest's kernel does is grey, and what runs in it green.
var phases = map[string]struct{ what, colour string }{
	"main":          {"the process starts", "#9ecae1"},
	vmm.MarkCreated: {"vole makes the machine", "#4292c6"},
	vmm.MarkEntry:   {"vole starts the vCPUs", "#2171b5"},
	vmm.MarkConsole: {"the kernel, to its first word", "#bdbdbd"},
	vmm.MarkInit:    {"the kernel boots", "#969696"},
	"command":       {"the guest's init gets ready", "#a1d99b"},
	"exited":        {"the command", "#31a354"},
	vmm.MarkExit:    {"the guest ends", "#737373"},
}

// Measures of the picture, in its units.
const (
	svgWidth  = 900
	svgLeft   = 230 // of the bars
	svgRight  = 90
	svgTop    = 46
	svgRow    = 24
	svgBar    = 16
	svgBottom = 34
)

// timelineSVG draws a timeline: a row for each phase, from where the last one ended.
func timelineSVG(title string, marks []vmm.Mark) []byte {
	total := time.Duration(1)
	if len(marks) > 0 {
		total = max(total, marks[len(marks)-1].At)
	}
	scale := float64(svgWidth-svgLeft-svgRight) / float64(total)
	x := func(at time.Duration) float64 { return svgLeft + float64(at)*scale }
	height := svgTop + svgRow*max(len(marks)-1, 1) + svgBottom
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", svgWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", svgWidth, height)
	fmt.Fprintf(&b, `<text x="10" y="24" font-size="15">%s</text>`+"\n", escaped(title))
	step := niceStep(total)
	bottom := height - svgBottom + 4
	for at := time.Duration(0); at <= total; at += step {
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#e0e0e0"/>`, x(at), svgTop-6, x(at), bottom)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" fill="#757575" text-anchor="middle">%v</text>`+"\n", x(at), bottom+16, at)
	}
	last := time.Duration(0)
	for i, m := range marks {
		if i == 0 {
			last = m.At
			continue
		}
		y := svgTop + svgRow*(i-1)
		p, ok := phases[m.Name]
		if !ok {
			p.what, p.colour = "to "+m.Name, "#c0c0c0"
		}
		from := x(last)
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, svgLeft-10, y+13, escaped(p.what))
		fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`, from, y, math.Max(x(m.At)-from, 1), svgBar, p.colour)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" fill="#424242">%.1f ms</text>`+"\n", x(m.At)+5, y+13, ms(m.At-last))
		last = m.At
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// niceStep is a round step of which five to ten fit into total.
func niceStep(total time.Duration) time.Duration {
	step := time.Microsecond
	for {
		for _, n := range []time.Duration{1, 2, 5} {
			if total <= 10*n*step {
				return n * step
			}
		}
		step *= 10
	}
}

// escaped is text for XML.
func escaped(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;").Replace(oneLine(s))
}
