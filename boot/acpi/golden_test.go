package acpi

import (
	"flag"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden tables under testdata anew")

func TestBuildGolden(t *testing.T) {
	for _, g := range goldenMachines() {
		t.Run(g.name, func(t *testing.T) {
			got, err := Build(testBase, testLimit, g.m)
			require.NoError(t, err)
			if *update {
				require.NoError(t, os.MkdirAll("testdata", 0o755))
				require.NoError(t, os.WriteFile(g.golden(), got, 0o644))
			}
			want, err := os.ReadFile(g.golden())
			require.NoError(t, err)
			require.Equal(t, want, got, "tables differ; if that is meant, read what iasl -d says and run with -update")

			again, err := Build(testBase, testLimit, g.m)
			require.NoError(t, err)
			require.Equal(t, got, again, "not deterministic")
		})
	}
}
