package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCastsAreReadAsWritten(t *testing.T) {
	want := []Cast{
		{Name: "a", Title: "first", Cols: 88, Rows: 24, Events: []Event{{0.5, kindOutput, "x\x1b[m\r\n"}, {1, kindMarker, markEnd}}},
		{Name: "b", Cols: 10, Rows: 3},
	}
	var b bytes.Buffer
	for i := range want {
		require.NoError(t, want[i].writeTo(&b))
	}
	got, err := readCasts(&b)
	require.NoError(t, err)
	assert.Equal(t, want, got)

	for name, text := range map[string]string{
		"no header": `[1,"o","x"]`, "no event": "{}\nx", "no time": "{}\n[\"o\"]", "a broken header": "{",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readCasts(strings.NewReader(text))
			assert.ErrorContains(t, err, "read a recording: ")
		})
	}
}

func TestCompress(t *testing.T) {
	begin, end := func(at float64) Event { return Event{at, kindMarker, markBegin} }, func(at float64) Event { return Event{at, kindMarker, markEnd} }
	tests := []struct {
		name    string
		events  []Event
		want    []float64
		changed bool
	}{
		{"nothing", nil, nil, false},
		{"short", []Event{begin(0.5), output(1, ""), end(2)}, []float64{0.5, 1, 2}, false},
		{"a long wait", []Event{output(1, ""), output(9, ""), output(9.5, "")}, []float64{1, 2, 2.5}, true},
		{
			"a long command", []Event{begin(1), output(2, ""), output(3, ""), output(13, ""), end(14), output(14.5, "")},
			[]float64{1, 1.5, 2, 2.5, 3, 3.5}, true,
		},
		{"a command without an end", []Event{begin(0), output(1, ""), output(2, ""), output(3, ""), output(4, "")}, []float64{0, 0.5, 1, 1.5, 2}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := Cast{Events: test.events}
			assert.Equal(t, test.changed, c.compress(1, 2))
			var got []float64
			for _, ev := range c.Events {
				got = append(got, ev.Time)
			}
			assert.Equal(t, test.want, got)
		})
	}
}

func TestReadScript(t *testing.T) {
	tests := []struct {
		name, text, err string
		want            Script
	}{
		{
			"whole", "# comment\ntitle: a b\nrows: 30\n\n$ one\n$ two = 3\n= 4\n", "",
			Script{Name: "x", Title: "a b", Rows: 30, Commands: []Command{{"one", 0}, {"two = 3", 4}}},
		},
		{"empty", "# comment\n", "x.txt: it has no command", Script{}},
		{"no command", "\n= 3", `x.txt:2: there is no command before "= 3"`, Script{}},
		{"no code", "$ a\n= 256", `x.txt:2: "= 256" is none of`, Script{}},
		{"one command", "$ one", "", Script{Name: "x", Rows: 24, Commands: []Command{{"one", 0}}}},
		{"no rows", "rows: 0", `x.txt:1: "0" is no number of rows`, Script{}},
		{"something else", "ls", `x.txt:1: "ls" is none of`, Script{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.txt")
			require.NoError(t, os.WriteFile(path, []byte(test.text), 0o600))
			got, err := readScript(path)
			if test.err != "" {
				assert.ErrorContains(t, err, test.err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, test.want, got)
		})
	}
}

// TestRecord types commands that need no guest.
func TestRecord(t *testing.T) {
	if _, err := os.Stat("/dev/ptmx"); err != nil {
		t.Skip("there are no pseudo-terminals: ", err)
	}
	s := &Stage{Vole: "/bin/true", Kernel: "/none/vmlinuz"}
	require.NoError(t, s.open())
	t.Cleanup(s.close)
	c, err := s.record(context.Background(), Script{Name: "x", Rows: 24, Commands: []Command{
		{"test -t 0 && test -t 1 && test -t 2 && stty size", 0}, {"exit 3", 3}, {"echo $?", 0}, {"kill -9 $$", 137}, {"vole; cat hello.go", 0},
	}})
	require.NoError(t, err)
	assert.Equal(t, "$ test -t 0 && test -t 1 && test -t 2 && stty size\n24 88\n"+
		"$ exit 3\n$ echo $?\n3\n$ kill -9 $$\n$ vole; cat hello.go\n"+strings.ReplaceAll(files["hello.go"], "\t", "        "), c.text())

	require.NoError(t, c.check([]string{"nothing of it"}))
	assert.ErrorContains(t, c.check([]string{"hello"}), `"hello"`)
	_, err = s.record(context.Background(), Script{Name: "x", Rows: 24, Commands: []Command{{"echo why; exit 1", 0}}})
	assert.ErrorContains(t, err, "exit code 1, not 0; what has been seen:\n$ echo why; exit 1\nwhy\n")
}

func TestACommandThatDoesNotEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	_, err := runOnPTY(ctx, exec.Command("sh", "-c", "echo up; exec sleep 1000"), cols, rows, func([]byte) { cancel() })
	assert.ErrorIs(t, err, context.Canceled)
}
