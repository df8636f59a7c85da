package guests

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/testdata/nested"
)

// kvmGetAPIVersion is KVM_GET_API_VERSION of Linux's include/uapi/linux/kvm.h,
// here by itself so that this test needs nothing that it is to prove usable.
const kvmGetAPIVersion = 0xae00

func TestKVMAnswers(t *testing.T) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	version, err := unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion)
	require.NoError(t, err)
	assert.Equal(t, 12, version)
	assert.Empty(t, nested.CannotBoot())
}
