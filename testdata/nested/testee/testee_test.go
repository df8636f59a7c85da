package testee

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSum(t *testing.T) {
	if n := Sum(1, 2, 3); n != 6 {
		t.Errorf("%d", n)
	}
}

// TestFiles reads what the package has and, in a guest, writes what nobody wants to have
// back.
func TestFiles(t *testing.T) {
	b, err := os.ReadFile("testdata/words")
	if err != nil || string(b) != "words\n" {
		t.Errorf("%q %v", b, err)
	}
	names := []string{filepath.Join(t.TempDir(), "file")}
	if os.Getenv("TESTEE") != "" {
		names = append(names, "testdata/new")
	}
	for _, name := range names {
		if err := os.WriteFile(name, b, 0o666); err != nil {
			t.Error(err)
		}
	}
	t.Logf("TESTEE=%s", os.Getenv("TESTEE"))
	if os.Getenv("TESTEE_FAIL") != "" {
		t.Error("as asked")
	}
}

// TestWait waits for the end that somebody else puts to it.
func TestWait(t *testing.T) {
	if os.Getenv("TESTEE_WAIT") == "" {
		t.Skip("only where TESTEE_WAIT is set")
	}
	os.Stdout.WriteString("waiting\n")
	forever()
}

func forever() {
	for c := make(chan int); ; {
		<-c
	}
}

// FuzzSum fails for all that is longer than its seed.
func FuzzSum(f *testing.F) {
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1 {
			t.Errorf("%d bytes", len(b))
		}
	})
}

func BenchmarkSum(b *testing.B) {
	for b.Loop() {
		Sum(1, -2, 3)
	}
}
