package nested

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
)

const passing = `=== RUN   TestA
    a_test.go:1: a detail
--- PASS: TestA (0.01s)
=== RUN   TestB
=== RUN   TestB/sub
    a_test.go:9: why
--- SKIP: TestB (0.00s)
    --- SKIP: TestB/sub (0.00s)
`

func TestTracker(t *testing.T) {
	tests := []struct {
		name    string
		verbose bool
		count   int
		hosts   []string // output of each host; all but the last locked up
		code    int      // of the last
		want    string
		exit    int
		done    []string
	}{
		{
			name: "passing, quiet", hosts: []string{passing + "PASS\n"},
			want: "PASS\n", done: []string{"TestA", "TestB"},
		},
		{
			name: "passing, verbose", verbose: true, hosts: []string{passing + "PASS\ncoverage: 1.0% of statements\n"},
			want: passing + "PASS\ncoverage: 1.0% of statements\n", done: []string{"TestA", "TestB"},
		},
		{
			name: "failing, quiet", code: 1,
			hosts: []string{passing + "=== RUN   TestC\n    c_test.go:2: wrong\n--- FAIL: TestC (0.00s)\nFAIL\n"},
			want:  "    c_test.go:2: wrong\n--- FAIL: TestC (0.00s)\nFAIL\n", exit: 1, done: []string{"TestA", "TestB", "TestC"},
		},
		{
			name:  "locked up, then the rest passes",
			hosts: []string{"=== RUN   TestA\n--- PASS: TestA (0.01s)\n=== RUN   TestB\n    half a li", "=== RUN   TestB\n--- PASS: TestB (0.01s)\nPASS\n"},
			want:  "PASS\n", done: []string{"TestA", "TestB"},
		},
		{
			name: "a failure before the lockup counts", exit: 1,
			hosts: []string{"=== RUN   TestA\n    x\n--- FAIL: TestA (0.01s)\n=== RUN   TestB\n", "=== RUN   TestB\n--- PASS: TestB (0.01s)\nPASS\n"},
			want:  "    x\n--- FAIL: TestA (0.01s)\nFAIL\n", done: []string{"TestA", "TestB"},
		},
		{
			name: "killed in a test shows what it said", code: 137, exit: 137,
			hosts: []string{"=== RUN   TestA\n    a_test.go:1: words\n"},
			want:  "    a_test.go:1: words\n",
		},
		{
			name: "parallel tests are judged together", code: 1, exit: 1,
			hosts: []string{"=== RUN   TestA\n=== PAUSE TestA\n=== RUN   TestB\n=== PAUSE TestB\n=== CONT  TestA\n=== CONT  TestB\n=== NAME  TestA\n    a\n" +
				"--- PASS: TestB (0.1s)\n--- FAIL: TestA (0.1s)\nFAIL\n"},
			want: "    a\n--- PASS: TestB (0.1s)\n--- FAIL: TestA (0.1s)\nFAIL\n", done: []string{"TestA", "TestB"},
		},
		{
			name: "count", count: 2,
			hosts: []string{"=== RUN   TestA\n--- PASS: TestA (0.01s)\n=== RUN   TestB\n--- PASS: TestB (0.01s)\n=== RUN   TestA\n--- PASS: TestA (0.01s)\n=== RUN   TestB\n"},
			done:  []string{"TestA"},
		},
		{
			name: "json", verbose: true,
			hosts: []string{"\x16=== RUN   TestA\nnot ended\x16--- PASS: TestA (0.01s)\n\x16=== RUN   TestB\n"},
			want:  "\x16=== RUN   TestA\nnot ended\x16--- PASS: TestA (0.01s)\n\x16=== RUN   TestB\n", done: []string{"TestA"},
		},
		{
			name: "json, a subtest's failure before the lockup counts", verbose: true, exit: 1,
			hosts: []string{
				"\x16=== RUN   TestA\n\x16=== RUN   TestA/b\n\x16--- FAIL: TestA/b (0.1s)\n",
				"\x16=== RUN   TestA\n\x16=== RUN   TestA/b\n\x16--- PASS: TestA/b (0.1s)\n\x16--- PASS: TestA (0.1s)\n\x16PASS\n",
			},
			want: "\x16=== RUN   TestA\n\x16=== RUN   TestA/b\n\x16--- FAIL: TestA/b (0.1s)\n" +
				"\x16=== RUN   TestA\n\x16=== RUN   TestA/b\n\x16--- PASS: TestA/b (0.1s)\n\x16--- PASS: TestA (0.1s)\n\x16FAIL\n",
			done: []string{"TestA"},
		},
		{
			name:  "benchmarks, quiet",
			hosts: []string{"goos: linux\n=== RUN   BenchmarkA\nBenchmarkA\nBenchmarkA-2   \t1\t 2 ns/op\n=== RUN   BenchmarkB\nBenchmarkB/x\nBenchmarkB/x-2 \t1\t 2 ns/op\nPASS\n"},
			want:  "goos: linux\nBenchmarkA-2   \t1\t 2 ns/op\nBenchmarkB/x-2 \t1\t 2 ns/op\nPASS\n", done: []string{"BenchmarkA"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, chunk := range []int{1, 7, 1 << 20} {
				var out bytes.Buffer
				tr := newTracker(&out, test.verbose, max(test.count, 1))
				for i, host := range test.hosts {
					for rest := []byte(host); len(rest) > 0; {
						n := min(chunk, len(rest))
						_, err := tr.Write(rest[:n])
						assert.NoError(t, err)
						rest = rest[n:]
					}
					tr.hostEnded(i < len(test.hosts)-1)
				}
				assert.Equal(t, test.done, tr.done(), "done")
				assert.Equal(t, test.exit, tr.finish(test.code), "exit code")
				assert.Equal(t, test.want, out.String())
			}
		})
	}
}
