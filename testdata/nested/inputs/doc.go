// Package inputs holds the tests of what vole must refuse: input that is no
// kernel for it, and hosts that can't run it. They run the vole binary on this
// machine itself, since nothing boots, with images as distributions ship them.
//
// What takes no such image, and no host made for it, is tested in cmd/vole.
package inputs
