package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPrinter(t *testing.T) {
	const pass = `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: needs a thing: absent\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    a_test.go:5: only in make soak\n"}
{"Action":"skip","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Output":"nested: rerun\n"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`
	const fail = `{"Action":"run","Package":"q","Test":"TestC"}
{"Action":"output","Package":"q","Test":"TestC","Output":"=== RUN   TestC\n"}
{"Action":"output","Package":"q","Test":"TestC","Output":"    c_test.go:3: wrong\n"}
{"Action":"output","Package":"q","Test":"TestC","Output":"--- FAIL: TestC (0.00s)\n"}
{"Action":"fail","Package":"q","Test":"TestC"}
{"Action":"run","Package":"q","Test":"TestD"}
{"Action":"output","Package":"q","Test":"TestD","Output":"panic: oh\n"}
{"Action":"output","Package":"q","Output":"FAIL\tq\t0.1s\n"}
{"Action":"fail","Package":"q"}
not json
`
	const lockup = `{"Action":"run","Package":"r","Test":"TestE"}
{"Action":"output","Package":"r","Test":"TestE","Output":"=== RUN   TestE\n"}
{"Action":"output","Package":"r","Test":"TestE","Output":"nested: the emulated host failed\n"}
{"Action":"run","Package":"r","Test":"TestE"}
{"Action":"output","Package":"r","Test":"TestE","Output":"=== RUN   TestE\n"}
{"Action":"output","Package":"r","Test":"TestE","Output":"    e_test.go:3: wrong\n"}
{"Action":"output","Package":"r","Test":"TestE","Output":"--- FAIL: TestE (0.00s)\n"}
{"Action":"fail","Package":"r","Test":"TestE"}
{"Action":"output","Package":"r","Output":"FAIL\n"}
{"Action":"output","Package":"r","Output":"nested: rerun: it locked up during TestE\n"}
{"Action":"output","Package":"r","Output":"FAIL\tr\t0.1s\n"}
{"Action":"fail","Package":"r"}
`
	const again = `{"Action":"run","Package":"r","Test":"TestE"}
{"Action":"output","Package":"r","Test":"TestE","Output":"--- PASS: TestE (0.00s)\n"}
{"Action":"pass","Package":"r","Test":"TestE"}
{"Action":"output","Package":"r","Output":"FAIL\n"}`
	tests := []struct {
		name, in, want string
		allow          []*regexp.Regexp
		unexcused      int
	}{
		{name: "skips", in: pass, unexcused: 1,
			want: "skipped: p.TestA: needs a thing: absent\nskipped: p.TestB: only in make soak\nnested: rerun\nok  \tp\t0.1s\n"},
		{name: "excused", in: pass, allow: []*regexp.Regexp{regexp.MustCompile(`^p\.TestA: needs`)},
			want: "skipped: p.TestA: needs a thing: absent\nskipped: p.TestB: only in make soak\nnested: rerun\nok  \tp\t0.1s\n"},
		{name: "failed before the emulated host did", in: strings.Replace(lockup, `{"Action":"output","Package":"r","Output":"FAIL\n"}`, again, 1),
			want: "nested: the emulated host failed\n    e_test.go:3: wrong\n--- FAIL: TestE (0.00s)\n--- PASS: TestE (0.00s)\nFAIL\nnested: rerun: it locked up during TestE\nFAIL\tr\t0.1s\n"},
		{name: "failed in the second host", in: lockup,
			want: "nested: the emulated host failed\n    e_test.go:3: wrong\n--- FAIL: TestE (0.00s)\nFAIL\nnested: rerun: it locked up during TestE\nFAIL\tr\t0.1s\n"},
		{name: "failure", in: fail,
			want: "    c_test.go:3: wrong\n--- FAIL: TestC (0.00s)\npanic: oh\nFAIL\tq\t0.1s\nnot json\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			p := newPrinter(&out, test.allow)
			require.NoError(t, p.read(strings.NewReader(test.in)))
			assert.Equal(t, test.want, out.String())
			assert.Equal(t, test.unexcused, p.unexcused)
		})
	}
}

func TestReadExcused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "excused")
	write := func(s string) { require.NoError(t, os.WriteFile(path, []byte(s), 0o600)) }
	write("# comment\n\n^p\\.TestA:\tno such hardware\n")
	list, err := readExcused(path)
	require.NoError(t, err)
	assert.Len(t, list, 1)
	write("^p\\.TestA:\n")
	_, err = readExcused(path)
	assert.ErrorContains(t, err, "no reason")
	write("(\twhy\n")
	_, err = readExcused(path)
	assert.Error(t, err)
	list, err = readExcused("../excused")
	require.NoError(t, err, "the file that make uses")
	assert.NotNil(t, list)
}
