package guests

import (
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// unmovedText is where an x86-64 kernel's text begins that was not placed at
// random (__START_KERNEL with the default CONFIG_PHYSICAL_START).
const unmovedText = "ffffffff81000000"

// TestKASLR: a bzImage places itself at random, which --boot bzimage keeps; the
// vmlinux out of it stays where it was linked.
func TestKASLR(t *testing.T) {
	initrd := shellInit(t, "grep -m 1 ' _text$' /proc/kallsyms\npoweroff -f\n")
	address := regexp.MustCompile(`(?m)^([0-9a-f]{16}) . _text\r?$`)
	textOf := func(t *testing.T, way string) string {
		t.Helper()
		r := vole(t, "run", "-k", asset(t, nested.KernelDefault), "-i", initrd, "-m", "128M", "-a", "quiet", "--boot", way)
		require.Equal(t, 0, r.code, "console: %s\nstderr: %s", r.stdout, r.stderr)
		m := address.FindStringSubmatch(r.stdout)
		require.NotNil(t, m, "the guest does not tell where _text is: %s", r.stdout)
		return m[1]
	}
	t.Run("bzimage", func(t *testing.T) {
		// There are some 500 places: that both boots take the unmoved one does
		// not happen by chance.
		first, second := textOf(t, "bzimage"), textOf(t, "bzimage")
		t.Logf("_text at %s and %s", first, second)
		assert.False(t, first == unmovedText && second == unmovedText, "both kernels stayed at %s", unmovedText)
	})
	t.Run("vmlinux", func(t *testing.T) {
		for range 2 {
			assert.Equal(t, unmovedText, textOf(t, "vmlinux"))
		}
	})
}
