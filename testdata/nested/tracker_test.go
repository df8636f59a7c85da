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
			want: "PASS\n", done: []string{"^(TestA|TestB)$"},
		},
		{
			name: "passing, verbose", verbose: true, hosts: []string{passing + "PASS\ncoverage: 1.0% of statements\n"},
			want: passing + "PASS\ncoverage: 1.0% of statements\n", done: []string{"^(TestA|TestB)$"},
		},
		{
			name: "failing, quiet", code: 1,
			hosts: []string{passing + "=== RUN   TestC\n    c_test.go:2: wrong\n--- FAIL: TestC (0.00s)\nFAIL\n"},
			want:  "    c_test.go:2: wrong\n--- FAIL: TestC (0.00s)\nFAIL\n", exit: 1, done: []string{"^(TestA|TestB|TestC)$"},
		},
		{
			name:  "locked up, then the rest passes",
			hosts: []string{"=== RUN   TestA\n--- PASS: TestA (0.01s)\n=== RUN   TestB\n    half a li", "=== RUN   TestB\n--- PASS: TestB (0.01s)\nPASS\n"},
			want:  "PASS\n", done: []string{"^(TestA|TestB)$"},
		},
		{
			name: "a failure before the lockup counts", exit: 1,
			hosts: []string{"=== RUN   TestA\n    x\n--- FAIL: TestA (0.01s)\n=== RUN   TestB\n", "=== RUN   TestB\n--- PASS: TestB (0.01s)\nPASS\n"},
			want:  "    x\n--- FAIL: TestA (0.01s)\nFAIL\n", done: []string{"^(TestA|TestB)$"},
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
			want: "    a\n--- PASS: TestB (0.1s)\n--- FAIL: TestA (0.1s)\nFAIL\n", done: []string{"^(TestA|TestB)$"},
		},
		{
			name: "count", count: 2,
			hosts: []string{"=== RUN   TestA\n--- PASS: TestA (0.01s)\n=== RUN   TestB\n--- PASS: TestB (0.01s)\n=== RUN   TestA\n--- PASS: TestA (0.01s)\n=== RUN   TestB\n"},
			done:  []string{"^(TestA)$"},
		},
		{
			name: "json", verbose: true,
			hosts: []string{"\x16=== RUN   TestA\nnot ended\x16--- PASS: TestA (0.01s)\n\x16=== RUN   TestB\n"},
			want:  "\x16=== RUN   TestA\nnot ended\x16--- PASS: TestA (0.01s)\n\x16=== RUN   TestB\n", done: []string{"^(TestA)$"},
		},
		{
			name:  "benchmarks, quiet",
			hosts: []string{"goos: linux\n=== RUN   BenchmarkA\nBenchmarkA\nBenchmarkA-2   \t1\t 2 ns/op\n=== RUN   BenchmarkB\nBenchmarkB/x\nBenchmarkB/x-2 \t1\t 2 ns/op\nPASS\n"},
			want:  "goos: linux\nBenchmarkA-2   \t1\t 2 ns/op\nBenchmarkB/x-2 \t1\t 2 ns/op\nPASS\n", done: []string{"^(BenchmarkA)$"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, chunk := range []int{1, 7, 1 << 20} {
				var out bytes.Buffer
				tr := newTracker(&out, test.verbose, max(test.count, 1))
				for i, host := range test.hosts {
					tr.begin(1, 1)
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

func TestTrackerRounds(t *testing.T) {
	const (
		begin = "=== RUN   TestM\n=== RUN   TestM/a+b\n=== RUN   TestM/c\n    m_test.go:1: wrong\n"
		first = "=== RUN   TestA\n--- SKIP: TestA (0.1s)\n" + begin +
			"--- FAIL: TestM (0.2s)\n    --- PASS: TestM/a+b (0.1s)\n    --- FAIL: TestM/c (0.1s)\nFAIL\ncoverage: 9.0% of statements\n"
		again  = "=== RUN   TestM\n=== RUN   TestM/c\n"
		pass   = again + "--- PASS: TestM (0.2s)\n    --- PASS: TestM/c (0.1s)\nPASS\ncoverage: 1.0% of statements\n"
		fail   = again + "--- FAIL: TestM (0.3s)\n    --- FAIL: TestM/c (0.3s)\nFAIL\n"
		marked = "    m_test.go:1: wrong\nnested: round 1 of 3: --- FAIL: TestM (0.2s)\n    --- PASS: TestM/a+b (0.1s)\nnested: round 1 of 3:     --- FAIL: TestM/c (0.1s)\n"
		second = "nested: round 2 of 3: --- FAIL: TestM (0.3s)\nnested: round 2 of 3:     --- FAIL: TestM/c (0.3s)\n"
		mark   = "\x16"
	)
	skip := []string{"^(TestA)$", `^TestM$/^a\+b$`}
	tests := []struct {
		name    string
		verbose bool
		rounds  []string
		code    int
		again   []string // of the last round
		done    []string // before the last round
		want    string
		exit    int
		mended  string
	}{
		{
			name: "passes the second time", rounds: []string{first, pass}, done: skip,
			want: marked + "PASS\ncoverage: 9.0% of statements\n", mended: "1 test failed at first and passed when run again: TestM/c (1)",
		},
		{
			name: "passes the third time", rounds: []string{first, fail, pass}, done: skip,
			want: marked + second + "PASS\ncoverage: 9.0% of statements\n", mended: "1 test failed at first and passed when run again: TestM/c (2)",
		},
		{
			name: "fails each time", rounds: []string{first, fail, fail}, code: 1, exit: 1, done: skip,
			want: marked + second + "--- FAIL: TestM (0.3s)\n    --- FAIL: TestM/c (0.3s)\nFAIL\ncoverage: 9.0% of statements\n",
		},
		{
			name: "not run again", rounds: []string{first}, code: 1, exit: 1, again: []string{"TestM/c"},
			want: marked + "--- FAIL: TestM (0.2s)\n    --- FAIL: TestM/c (0.1s)\nFAIL\ncoverage: 9.0% of statements\n",
		},
		{
			name: "skipped when run again", rounds: []string{first, again + "--- PASS: TestM (0.2s)\n    --- SKIP: TestM/c (0.1s)\nPASS\n"},
			done: skip, again: []string{"TestM/c"}, exit: 1,
			want: marked + "--- PASS: TestM (0.2s)\nnested: round 2 of 3:     --- SKIP: TestM/c (0.1s)\n    --- FAIL: TestM/c (0.1s)\nFAIL\ncoverage: 9.0% of statements\n",
		},
		{
			name: "ends amid the tests", rounds: []string{first, again}, code: 2, exit: 2, done: skip,
			want: marked + "--- FAIL: TestM (0.2s)\n    --- FAIL: TestM/c (0.1s)\nFAIL\ncoverage: 9.0% of statements\n",
		},
		{
			name: "json", verbose: true, done: []string{`^TestM$/^a$`}, mended: "1 test failed at first and passed when run again: TestM/c (1)",
			rounds: []string{
				mark + "=== RUN   TestM\n" + mark + "=== RUN   TestM/a\n" + mark + "--- PASS: TestM/a (0.1s)\n" + mark + "=== RUN   TestM/c\nhalf" + mark + "--- FAIL: TestM/c (0.1s)\n" + mark + "--- FAIL: TestM (0.1s)\n" + mark + "FAIL\n",
				mark + "=== RUN   TestM\n" + mark + "--- PASS: TestM/c (0.1s)\n" + mark + "--- PASS: TestM (0.1s)\n" + mark + "PASS\n",
			},
			want: mark + "=== RUN   TestM\n" + mark + "=== RUN   TestM/a\n" + mark + "--- PASS: TestM/a (0.1s)\n" + mark + "=== RUN   TestM/c\n" +
				"half\n" + mark + "=== NAME  TestM/c\nnested: round 1 of 3: --- FAIL: TestM/c (0.1s)\n" + mark + "=== NAME  TestM\nnested: round 1 of 3: --- FAIL: TestM (0.1s)\n" +
				mark + "=== NAME  \n" + mark + "=== RUN   TestM\n" + mark + "--- PASS: TestM/c (0.1s)\n" + mark + "--- PASS: TestM (0.1s)\n" + mark + "PASS\n",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			tr := newTracker(&out, test.verbose, 1)
			var again []string
			for i, round := range test.rounds {
				tr.begin(i+1, 3)
				if i > 0 {
					assert.Equal(t, test.done, tr.done(), "done before round %d", i+1)
				}
				_, err := tr.Write([]byte(round))
				assert.NoError(t, err)
				again = tr.again()
				last := i == len(test.rounds)-1
				tr.hostEnded(!last)
				if !last {
					assert.NotEmpty(t, again)
					tr.apart()
				}
			}
			assert.Equal(t, test.again, again)
			assert.Equal(t, test.exit, tr.finish(test.code), "exit code")
			assert.Equal(t, test.want, out.String())
			assert.Equal(t, test.mended, tr.mended())
		})
	}
}
