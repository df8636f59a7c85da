package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// tapeText is what a screen remembers, as text.
func tapeText(s *Screen) []string {
	var all []string
	for _, line := range s.Lines {
		var b strings.Builder
		for _, c := range line {
			b.WriteRune(max(c.R, ' '))
		}
		all = append(all, b.String())
	}
	return all
}

func TestScreen(t *testing.T) {
	tests := []struct {
		name  string
		input string
		want  []string
		top   int
	}{
		{"text", "one\r\ntwo", []string{"one", "two"}, 0},
		{"a line feed goes down only", "one\ntwo", []string{"one", "   two"}, 0},
		{"a return overwrites", "12%\r99%", []string{"99%"}, 0},
		{"backspace", "abx\bc", []string{"abc"}, 0},
		{"backspace at the edge", "\b\ba", []string{"a"}, 0},
		{"tab", "a\tb", []string{"a       b"}, 0},
		{"a tab at the end", "\t\t\tb", []string{"         b"}, 0},
		{"bell", "a\ab", []string{"ab"}, 0},
		{"blanks at the end", "a   \r\n  ", []string{"a", ""}, 0},
		{"the last column waits", "0123456789", []string{"0123456789"}, 0},
		{"a long line wraps", "0123456789ab", []string{"0123456789", "ab"}, 0},
		{"a return at the last column", "0123456789\rx", []string{"x123456789"}, 0},
		{"scrolling", "1\r\n2\r\n3\r\n4\r\n5", []string{"1", "2", "3", "4", "5"}, 2},
		{"erase to the end", "abcdef\x1b[3D\x1b[K", []string{"abc"}, 0},
		{"erase to the beginning", "abcdef\x1b[4G\x1b[1K", []string{"    ef"}, 0},
		{"erase a line", "abc\x1b[2Kd", []string{"   d"}, 0},
		{"erase below", "1\r\n2\r\n3\x1b[2H\x1b[J", []string{"1", ""}, 0},
		{"erase above", "1\r\n2\r\n3\x1b[1J", []string{"", "", ""}, 0},
		{"a cleared screen begins below", "1\r\n2\x1b[H\x1b[2J3", []string{"1", "2", "3"}, 2},
		{"moves", "\x1b[2;3Hx\x1b[Ay\x1b[1Bz\x1b[9Cw\x1b[99;99H", []string{"   y", "  x z    w"}, 0},
		{"modes and titles are dropped", "\x1b[?25la\x1b]0;title\ab\x1b]8;;x\x1b\\c\x1b(Bd", []string{"abcd"}, 0},
		{"runes", "ä→\r\n", []string{"ä→"}, 0},
		{"no UTF-8", "a\xffb", []string{"a\ufffdb"}, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := &Screen{Cols: 10, Rows: 3}
			_, err := s.Write([]byte(test.input))
			require.NoError(t, err)
			assert.Equal(t, test.want, tapeText(s))
			assert.Equal(t, test.top, s.Top)
			assert.Empty(t, s.Unknown)

			one := &Screen{Cols: 10, Rows: 3}
			for _, b := range []byte(test.input) {
				_, _ = one.Write([]byte{b})
			}
			assert.Equal(t, s, one, "byte by byte")
		})
	}
}

func TestStyles(t *testing.T) {
	tests := []struct {
		name, input string
		want        Style
	}{
		{"none", "x", Style{}},
		{"bold green", "\x1b[1;32mx", Style{FG: 3, Bold: true}},
		{"bright", "\x1b[91;104mx", Style{FG: 10, BG: 13}},
		{"reset", "\x1b[1;2;7;31;41m\x1b[mx", Style{}},
		{"one by one", "\x1b[1;2;7;31;41m\x1b[22;27;39;49mx", Style{}},
		{"faint and reverse", "\x1b[2;7mx", Style{Faint: true, Reverse: true}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := &Screen{Cols: 10, Rows: 3}
			_, _ = s.Write([]byte(test.input))
			assert.Equal(t, []Cell{{'x', test.want}}, s.Lines[0])
		})
	}
}

func TestUnknownSequences(t *testing.T) {
	for name, input := range map[string]string{
		"CSI 1@": "\x1b[1@", "ESC \"Z\"": "\x1bZ", "SGR 38": "\x1b[38;5;3m", "a broken CSI": "\x1b[1\n",
		"an endless sequence": "\x1b]" + strings.Repeat("x", longestSequence),
	} {
		t.Run(name, func(t *testing.T) {
			s := &Screen{Cols: 10, Rows: 3}
			_, _ = s.Write([]byte(input + input))
			assert.Equal(t, []string{name}, s.Unknown)
		})
	}
}

func FuzzScreen(f *testing.F) {
	f.Add([]byte("a\x1b[2;3Hx\x1b[1J\x1b[2J\x1b[K\r\n\x1b]0;t\a\x1b[1;38;5;1m\x1bc\tb"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &Screen{Cols: 10, Rows: 3}
		top := 0
		for _, c := range b {
			_, _ = s.Write([]byte{c})
			require.GreaterOrEqual(t, s.Top, top)
			top = s.Top
		}
		for _, line := range s.Lines {
			require.LessOrEqual(t, len(line), s.Cols)
		}
		require.LessOrEqual(t, len(s.Lines), s.Top+s.Rows)
		require.LessOrEqual(t, len(s.pending), longestSequence+1)
	})
}
