/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
/*
 * msgd._native: the plain cases of what is done for every message.  msgd/native.py says how it is used.
 */
#include "fragments.h"
#include "records.h"
#include "sending.h"

Py_ssize_t slot_offset(PyObject *cls, const char *name)
{
	PyObject *descriptor = PyType_Check(cls) ? PyObject_GetAttrString(cls, name) : NULL;
	Py_ssize_t offset = -1;

	if (descriptor && Py_IS_TYPE(descriptor, &PyMemberDescr_Type) &&
	    ((PyMemberDescrObject *)descriptor)->d_member->type == T_OBJECT_EX &&
	    PyType_IsSubtype((PyTypeObject *)cls, PyDescr_TYPE(descriptor)))
		offset = ((PyMemberDescrObject *)descriptor)->d_member->offset;
	Py_XDECREF(descriptor);
	if (offset < 0)
		PyErr_Format(PyExc_TypeError, "%R has no slot %s", cls, name);
	return offset;
}

/*
 * move_all(messages, deliver)
 *
 * Takes the messages off the left end of a deque, and passes each to `deliver`, a builtin, in one step.
 */
PyObject *move_all(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	PyObject *popleft;
	int failed = 0;

	(void)module;
	if (count != 2 || !PyCFunction_Check(args[1])) {
		PyErr_SetString(PyExc_TypeError, "move_all(messages, deliver): a deque and a builtin");
		return NULL;
	}
	popleft = PyObject_GetAttrString(args[0], "popleft");
	if (!popleft)
		return NULL;
	while (!failed && PyObject_Size(args[0]) > 0) {
		PyObject *message = PyObject_CallNoArgs(popleft);
		PyObject *done = message ? PyObject_CallOneArg(args[1], message) : NULL;

		Py_XDECREF(message);
		Py_XDECREF(done);
		failed = !done;
	}
	Py_DECREF(popleft);
	return failed ? NULL : Py_NewRef(Py_None);
}

#define FAST(name, text) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, text}

static PyMethodDef methods[] = {
	FAST(receive_frames, "receive_frames(addresses, pid, max_length, append, fd, reader): what is to be seen to."),
	FAST(split_records, "split_records(addresses, pid, messages, value, position): the next position."),
	FAST(receive_datagrams, "receive_datagrams(addresses, fd, known_senders, deliver, keep, assembly): whether there may be more, how many were lost."),
	FAST(move_all, "move_all(messages, deliver): move a deque's messages in one step."),
	{"datagram_sender", datagram_sender, METH_VARARGS, "The Sender of a dgram endpoint."},
	{"frame_sender", frame_sender, METH_VARARGS, "The Sender of a stream endpoint."},
	{"record_sender", record_sender, METH_VARARGS, "The Sender of a tdb endpoint."},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "msgd._native",
	.m_doc = "The plain cases of what is done for every message.",
	.m_size = -1,
	.m_methods = methods,
};

PyMODINIT_FUNC PyInit__native(void)
{
	const char *pure = getenv("MSGD_PURE");
	PyObject *module;

	if (pure && *pure && strcmp(pure, "0")) {
		PyErr_SetString(PyExc_ImportError, "MSGD_PURE is set");
		return NULL;
	}
	if (PyType_Ready(&SenderType))
		return NULL;
	module = PyModule_Create(&definition);
	if (!module)
		return NULL;
	if (PyModule_AddType(module, &AddressesType) || PyModule_AddType(module, &DelivererType) ||
	    PyModule_AddType(module, &LibraryType) || PyModule_AddType(module, &OwnRecordType) ||
	    PyModule_AddType(module, &AssemblyType))
		Py_CLEAR(module);
	return module;
}
