package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
)

// Kinds of events.
const (
	kindOutput = "o" // what has come out of the terminal
	kindMarker = "m" // the beginning or the end of a command
)

// What markers say.
const (
	markBegin = "begin"
	markEnd   = "end"
)

// Event is what happened at a time, in seconds from the beginning.
type Event struct {
	Time float64
	Kind string
	Data string
}

// Cast is a recording. It is kept in the form of asciicast v2: a line of JSON for
// the header, and one for each event.
type Cast struct {
	Name       string // of the picture
	Title      string
	Cols, Rows int
	Events     []Event
}

type castHeader struct {
	Version int    `json:"version"`
	Width   int    `json:"width"`
	Height  int    `json:"height"`
	Title   string `json:"title"`
	Name    string `json:"name"` // an addition
}

// writeTo writes the recording.
func (c *Cast) writeTo(w io.Writer) error {
	e := json.NewEncoder(w)
	if err := e.Encode(castHeader{Version: 2, Width: c.Cols, Height: c.Rows, Title: c.Title, Name: c.Name}); err != nil {
		return err
	}
	for _, ev := range c.Events {
		if err := e.Encode([]any{ev.Time, ev.Kind, ev.Data}); err != nil {
			return err
		}
	}
	return nil
}

// readCasts reads recordings that stand one behind the other.
func readCasts(r io.Reader) ([]Cast, error) {
	var all []Cast
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Bytes()
		if len(line) > 0 && line[0] == '{' {
			var h castHeader
			if err := json.Unmarshal(line, &h); err != nil {
				return nil, fmt.Errorf("read a recording: %w", err)
			}
			all = append(all, Cast{Name: h.Name, Title: h.Title, Cols: h.Width, Rows: h.Height})
			continue
		}
		var ev Event
		if err := json.Unmarshal(line, &[]any{&ev.Time, &ev.Kind, &ev.Data}); err != nil || len(all) == 0 {
			return nil, fmt.Errorf("read a recording: %.60q is not an event", line)
		}
		last := &all[len(all)-1]
		last.Events = append(last.Events, ev)
	}
	return all, lines.Err()
}

// compress shortens a recording's times: no wait is longer than wait, and a
// command that takes longer than whole even so is run faster, evenly. Both are
// seconds. It reports whether it changed anything.
func (c *Cast) compress(wait, whole float64) bool {
	gaps := make([]float64, len(c.Events))
	changed := false
	before := 0.0
	for i, ev := range c.Events {
		gaps[i] = ev.Time - before
		before = ev.Time
		if gaps[i] > wait {
			gaps[i], changed = wait, true
		}
	}
	for i := 0; i < len(c.Events); i++ {
		if c.Events[i].Kind != kindMarker || c.Events[i].Data != markBegin {
			continue
		}
		took, end := 0.0, i+1
		for ; end < len(c.Events); end++ {
			took += gaps[end]
			if c.Events[end].Kind == kindMarker {
				break
			}
		}
		if took > whole {
			changed = true
			for j := i + 1; j <= min(end, len(gaps)-1); j++ {
				gaps[j] *= whole / took
			}
		}
		i = end
	}
	now := 0.0
	for i := range c.Events {
		now += gaps[i]
		c.Events[i].Time = math.Round(now*1e3) / 1e3
	}
	return changed
}
