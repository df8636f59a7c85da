package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// seen is a picture that has been read again.
type seen struct {
	whole  float64
	frames map[string][]frame // of animations
	groups []group            // the first one moves the window
	base   int                // the window without animations
	rows   int
}

type frame struct {
	at   float64 // part of the round
	text string
}

type group struct {
	animation string
	hidden    bool
	texts     []text
}

type text struct {
	row, col int
	text     string
}

var (
	animation  = regexp.MustCompile(`@keyframes (\w+)\{(.*)\}\n`)
	step       = regexp.MustCompile(`([\d.]+)%\{([^}]*)\}`)
	roundTime  = regexp.MustCompile(`g\{animation:([\d.]+)s `)
	translated = regexp.MustCompile(`-?\d+`)
)

// look reads a picture, all of which must be well-formed.
func look(t *testing.T, svg []byte) *seen {
	t.Helper()
	p := &seen{frames: map[string][]frame{}}
	for _, m := range animation.FindAllStringSubmatch(string(svg), -1) {
		for _, f := range step.FindAllStringSubmatch(m[2], -1) {
			at, err := strconv.ParseFloat(f[1], 64)
			require.NoError(t, err)
			p.frames[m[1]] = append(p.frames[m[1]], frame{at / 100, f[2]})
		}
	}
	m := roundTime.FindSubmatch(svg)
	require.NotNil(t, m)
	p.whole, _ = strconv.ParseFloat(string(m[1]), 64)
	d := xml.NewDecoder(bytes.NewReader(svg))
	svgs, at := 0, text{}
	inText := false
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return p
		}
		require.NoError(t, err)
		switch e := token.(type) {
		case xml.StartElement:
			require.NotContains(t, []string{"script", "image", "use", "a", "foreignObject"}, e.Name.Local)
			attr := map[string]string{}
			for _, a := range e.Attr {
				attr[a.Name.Local] = a.Value
				require.False(t, strings.HasPrefix(a.Name.Local, "on"), a.Name.Local)
			}
			number := func(name string) int {
				f, err := strconv.ParseFloat(attr[name], 64)
				require.NoError(t, err)
				return int(math.Round(f * 10))
			}
			switch e.Name.Local {
			case "svg":
				if svgs++; svgs == 2 {
					p.rows = number("height") / 10 / lineHeight
				}
			case "g":
				p.groups = append(p.groups, group{strings.TrimPrefix(attr["style"], "animation-name:"), attr["class"] == "o", nil})
				if len(p.groups) == 1 {
					numbers := translated.FindAllString(attr["transform"], -1)
					y, err := strconv.Atoi(numbers[1])
					require.NoError(t, err)
					p.base = -y / lineHeight
				}
			case "text":
				if inText = svgs == 2; inText {
					at = text{row: (number("y")/10 + 5) / lineHeight, col: int(math.Round(float64(number("x")) / 10 / cellWidth))}
					at.row--
				}
			}
		case xml.CharData:
			at.text += string(e)
		case xml.EndElement:
			if e.Name.Local == "text" && inText {
				require.NotContains(t, at.text, "  ")
				g := &p.groups[len(p.groups)-1]
				g.texts = append(g.texts, at)
				inText = false
			}
			at = text{}
		}
	}
}

// value is an animation's at a time, "" before its first step.
func (p *seen) value(name string, at float64) string {
	value := ""
	for _, f := range p.frames[name] {
		if f.at <= at/p.whole {
			value = f.text
		}
	}
	return value
}

// screen is what the picture shows at a time, or, before all times, without
// animations.
func (p *seen) screen(at float64) []string {
	top := p.base
	lines := make([]string, p.rows)
	for i, g := range p.groups {
		if i == 0 {
			if v := p.value(g.animation, at); v != "" && at >= 0 {
				y, _ := strconv.Atoi(translated.FindString(v))
				top = -y / lineHeight
			}
			continue
		}
		visible := !g.hidden
		if v := p.value(g.animation, at); v != "" && at >= 0 {
			visible = v == "visibility:visible"
		}
		if !visible {
			continue
		}
		for _, s := range g.texts {
			if row := s.row - top; row >= 0 && row < p.rows {
				line := []rune(lines[row])
				for len(line) < s.col+len([]rune(s.text)) {
					line = append(line, ' ')
				}
				copy(line[s.col:], []rune(s.text))
				lines[row] = string(line)
			}
		}
	}
	return lines
}

// windowAt is what a terminal shows at a time, to which events of the frame belong.
func windowAt(c *Cast, at float64, rows int) []string {
	s := &Screen{Cols: c.Cols, Rows: c.Rows}
	for _, ev := range c.Events {
		if ev.Kind == kindOutput && ev.Time <= at+1e-6 {
			_, _ = s.Write([]byte(ev.Data))
		}
	}
	lines := make([]string, rows)
	copy(lines, tapeText(s)[min(s.Top, len(s.Lines)):])
	return lines
}

func output(at float64, data string) Event { return Event{at, kindOutput, data} }

// TestPicture looks at pictures at many times, and compares with the terminal.
func TestPicture(t *testing.T) {
	tests := []struct {
		name   string
		events []Event
	}{
		{"nothing", nil},
		{"at once", []Event{output(0, "one\r\ntwo")}},
		{"typed", []Event{output(0, "\x1b[1;32m$\x1b[0m "), output(1, "l"), output(1.3, "s"), output(1.6, " -"), output(2, "l\r\n")}},
		{"progress", []Event{output(0, "at 10%"), output(1, "\rat 50%"), output(2, "\rat 100%"), output(3, "\r\x1b[Kdone")}},
		{"shorter", []Event{output(1, "abcdef"), output(2, "\x1b[3D\x1b[K"), output(3, "\b\b\b\x1b[Kz")}},
		{"within a frame", []Event{output(1.01, "x"), output(1.02, "\ry"), output(1.03, "\rz")}},
		{"scrolling", []Event{output(1, "1\r\n2\r\n3\r\n4"), output(2, "\r\n5"), output(3, "\r\n6\r\n7\r\n8\r\n9")}},
		{"cleared", []Event{output(1, "1\r\n2"), output(2, "\x1b[2J\x1b[H3"), output(3, "\r\n4")}},
		{"styles", []Event{output(1, "\x1b[31ma\x1b[7mb\x1b[0;44m c \x1b[2md\x1b[0m e"), output(2, "\r\x1b[1mxyz")}},
		{"gaps", []Event{output(1, "  a  b c   d    "), output(2, "e")}},
		{"markup", []Event{output(1, "<&\"'> ]]> \x1b[1m</text>")}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := &Cast{Name: "x", Title: "<title> & more", Cols: 20, Rows: 4, Events: test.events}
			var b bytes.Buffer
			require.NoError(t, draw(&b, c, "a & b"))
			p := look(t, b.Bytes())
			end := 0.0
			if n := len(test.events); n > 0 {
				end = test.events[n-1].Time
			}
			for n := range int((end + restTime) / frameTime) {
				at := float64(n) * frameTime
				assert.Equal(t, windowAt(c, at, p.rows), p.screen(at+frameTime/2), "after %.1f s", at)
			}
			assert.Equal(t, windowAt(c, 100, p.rows), p.screen(-1), "without animations")
		})
	}
}

// TestPictureIsSmall draws as much as pictures are to show.
func TestPictureIsSmall(t *testing.T) {
	c := &Cast{Name: "x", Cols: cols, Rows: rows}
	at := 0.0
	for range 8 {
		for _, r := range prompt + strings.Repeat("word ", 12) {
			c.Events = append(c.Events, output(at, string(r)))
			at += typeEvery
		}
		for range 10 {
			at += 0.2
			c.Events = append(c.Events, output(at, strings.Repeat("output ", 12)+"\r\n"))
		}
	}
	var b bytes.Buffer
	require.NoError(t, draw(&b, c, ""))
	look(t, b.Bytes())
	assert.Less(t, b.Len(), largest)
}

// TestPicturesOfTheDocuments looks at those that are there.
func TestPicturesOfTheDocuments(t *testing.T) {
	const dir = "../../../docs/pictures"
	scripts, err := filepath.Glob(dir + "/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, scripts)
	for _, path := range scripts {
		s, err := readScript(path)
		require.NoError(t, err)
		t.Run(s.Name, func(t *testing.T) {
			svg, err := os.ReadFile(filepath.Join(dir, s.Name+".svg"))
			require.NoError(t, err, "`make pictures` draws it")
			assert.LessOrEqual(t, len(svg), largest)
			p := look(t, svg)
			var all strings.Builder
			for at := 0.0; at < p.whole; at += frameTime {
				all.WriteString(strings.Join(p.screen(at), "\n"))
			}
			for _, c := range s.Commands {
				assert.True(t, strings.Contains(all.String(), "$ "+c.Text), "%s: `make pictures` draws it anew", c.Text)
			}
			for _, word := range []string{"/tmp/", "/home/", "/root/", "/work/"} {
				assert.False(t, strings.Contains(all.String(), word), word)
			}
		})
	}
}
