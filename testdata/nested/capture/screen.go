package main

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// Style is how a cell looks. A colour is 0, the terminal's own, or 1 to 16: the
// eight of ECMA-48 and their bright ones.
type Style struct {
	FG, BG      uint8
	Bold, Faint bool
	Reverse     bool
}

// Cell is a character on the screen. Its zero value is blank.
type Cell struct {
	R rune
	Style
}

func (c Cell) blank() bool {
	return (c.R == 0 || c.R == ' ') && c.BG == 0 && !c.Reverse
}

// maxLines bounds what a Screen remembers: lines before that are an error of the
// script, whose picture would be too large.
const maxLines = 2000

// Screen is a terminal that remembers what scrolled away: a tape of lines, on
// which the window of its size moves down and never up. It interprets what plain
// programs write (ECMA-48 and the habits of xterm): CR, LF, BS, HT, BEL, SGR, the
// cursor's moves, and the erasing of lines and of the screen. Other sequences are
// read to their end and dropped, and Unknown names them.
//
// Each rune takes one cell; there are no wide and no combining ones.
type Screen struct {
	Cols, Rows int
	Lines      [][]Cell // the tape; without blanks at the ends of lines
	Top        int      // the line of the tape that is the screen's first
	Unknown    []string // sequences that were dropped, each once

	x, y    int // the cursor, from the screen's corner
	wrap    bool
	style   Style
	pending []byte // the beginning of a sequence or a rune
}

// Write interprets p. It never fails; a sequence may come in pieces.
func (s *Screen) Write(p []byte) (int, error) {
	b := append(s.pending, p...)
	for len(b) > 0 {
		n := s.step(b)
		if n == 0 {
			break
		}
		b = b[n:]
	}
	s.pending = append([]byte(nil), b...)
	return len(p), nil
}

// longestSequence is how much of a sequence is waited for, in bytes.
const longestSequence = 256

// step interprets what b begins with, and returns its length: 0 if it has not all
// come yet.
func (s *Screen) step(b []byte) int {
	switch c := b[0]; {
	case c == 0x1b:
		n := s.escape(b)
		if n == 0 && len(b) > longestSequence {
			s.unknown("an endless sequence")
			return 1
		}
		return n
	case c < ' ' || c == 0x7f:
		s.control(c)
		return 1
	}
	if !utf8.FullRune(b) {
		return 0
	}
	r, n := utf8.DecodeRune(b)
	s.put(r)
	return n
}

func (s *Screen) control(c byte) {
	switch c {
	case '\r':
		s.move(0, s.y)
	case '\n', '\v', '\f':
		s.lineFeed()
	case '\b':
		s.move(s.x-1, s.y)
	case '\t':
		s.move((s.x/8+1)*8, s.y)
	}
}

// move puts the cursor somewhere on the screen.
func (s *Screen) move(x, y int) {
	s.x, s.y, s.wrap = min(max(x, 0), s.Cols-1), min(max(y, 0), s.Rows-1), false
}

func (s *Screen) lineFeed() {
	s.wrap = false
	if s.y < s.Rows-1 {
		s.y++
	} else {
		s.Top++
	}
}

func (s *Screen) put(r rune) {
	if s.wrap {
		s.x = 0
		s.lineFeed()
	}
	line := s.line()
	for len(*line) <= s.x {
		*line = append(*line, Cell{})
	}
	(*line)[s.x] = Cell{r, s.style}
	trim(line)
	if s.x == s.Cols-1 {
		s.wrap = true // the next one goes to the next line
	} else {
		s.x++
	}
}

// line is the one that the cursor is on.
func (s *Screen) line() *[]Cell {
	for len(s.Lines) <= s.Top+s.y {
		s.Lines = append(s.Lines, nil)
	}
	return &s.Lines[s.Top+s.y]
}

func trim(line *[]Cell) {
	for n := len(*line); n > 0 && (*line)[n-1].blank(); n-- {
		*line = (*line)[:n-1]
	}
}

// escape interprets the sequence that b begins with, and returns its length.
func (s *Screen) escape(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	switch b[1] {
	case '[': // CSI: parameters, intermediates, a final byte
		for i := 2; i < len(b); i++ {
			if b[i] >= 0x40 && b[i] <= 0x7e {
				s.csi(string(b[2:i]), b[i])
				return i + 1
			}
			if b[i] < 0x20 || b[i] > 0x7e {
				s.unknown("a broken CSI")
				return i
			}
		}
		return 0
	case ']', 'P', 'X', '^', '_': // a string up to BEL or ST
		for i := 2; i < len(b); i++ {
			if b[i] == 7 {
				return i + 1
			}
			if b[i] == 0x1b && i+1 < len(b) {
				if b[i+1] == '\\' {
					return i + 2
				}
				return i // broken off by another sequence
			}
		}
		return 0
	case '(', ')': // a character set
		if len(b) < 3 {
			return 0
		}
		return 3
	case 'c': // reset
		s.style = Style{}
		s.clear()
	default:
		s.unknown("ESC " + strconv.QuoteToASCII(string(b[1:2])))
	}
	return 2
}

func (s *Screen) csi(params string, final byte) {
	if strings.HasPrefix(params, "?") && (final == 'h' || final == 'l') {
		return // modes of the terminal: a hidden cursor, pasting
	}
	var args []int
	for field := range strings.SplitSeq(params, ";") {
		n, err := strconv.Atoi(field)
		if err != nil && field != "" || n < 0 {
			s.unknown("CSI " + params + string(final))
			return
		}
		args = append(args, min(n, 1000))
	}
	arg := func(i, otherwise int) int {
		if i < len(args) && args[i] > 0 {
			return args[i]
		}
		return otherwise
	}
	switch final {
	case 'm':
		s.sgr(args)
	case 'A':
		s.move(s.x, s.y-arg(0, 1))
	case 'B':
		s.move(s.x, s.y+arg(0, 1))
	case 'C':
		s.move(s.x+arg(0, 1), s.y)
	case 'D':
		s.move(s.x-arg(0, 1), s.y)
	case 'G':
		s.move(arg(0, 1)-1, s.y)
	case 'H', 'f':
		s.move(arg(1, 1)-1, arg(0, 1)-1)
	case 'J':
		s.eraseScreen(args[0])
	case 'K':
		s.eraseLine(args[0])
	case 'n': // a question that nobody answers
	default:
		s.unknown("CSI " + params + string(final))
	}
}

func (s *Screen) eraseLine(way int) {
	line := s.line()
	switch {
	case way == 0:
		*line = (*line)[:min(len(*line), s.x)]
	case way == 1:
		for i := range min(len(*line), s.x+1) {
			(*line)[i] = Cell{}
		}
	case way == 2:
		*line = nil
	}
	trim(line)
	s.wrap = false
}

func (s *Screen) eraseScreen(way int) {
	switch way {
	case 0:
		s.eraseLine(0)
		s.Lines = s.Lines[:s.Top+s.y+1]
	case 1:
		s.eraseLine(1)
		for i := s.Top; i < s.Top+s.y; i++ {
			s.Lines[i] = nil
		}
	case 2, 3:
		x, y := s.x, s.y
		s.clear()
		s.move(x, y)
	}
}

// clear goes on below all that was written, so that nothing on the tape is lost.
func (s *Screen) clear() {
	s.Top = max(s.Top, len(s.Lines))
	s.move(0, 0)
}

// sgr sets the style. See ECMA-48, 8.3.117, and ISO 8613-6 for 38 and 48.
func (s *Screen) sgr(args []int) {
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == 0:
			s.style = Style{}
		case a == 1:
			s.style.Bold = true
		case a == 2:
			s.style.Faint = true
		case a == 7:
			s.style.Reverse = true
		case a == 22:
			s.style.Bold, s.style.Faint = false, false
		case a == 27:
			s.style.Reverse = false
		case a >= 30 && a <= 37:
			s.style.FG = uint8(a - 30 + 1)
		case a == 39:
			s.style.FG = 0
		case a >= 40 && a <= 47:
			s.style.BG = uint8(a - 40 + 1)
		case a == 49:
			s.style.BG = 0
		case a >= 90 && a <= 97:
			s.style.FG = uint8(a - 90 + 9)
		case a >= 100 && a <= 107:
			s.style.BG = uint8(a - 100 + 9)
		case a == 38 || a == 48: // other colours than the sixteen
			if i+1 < len(args) && args[i+1] == 5 {
				i += 2
			} else {
				i += 4
			}
			s.unknown("SGR " + strconv.Itoa(a))
		}
	}
}

func (s *Screen) unknown(what string) {
	for _, u := range s.Unknown {
		if u == what {
			return
		}
	}
	if len(s.Unknown) < 20 {
		s.Unknown = append(s.Unknown, what)
	}
}
