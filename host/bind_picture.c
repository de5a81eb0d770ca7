/* onn.core.picture: PNG and JPEG files as tensors. */
#include "bind_tensor.h"
#include "picture.h"

/* size(path) -> height, width; or nil, message, code */
static int l_size(lua_State *L) {
    int64_t height = 0, width = 0;
    Status status = picture_size(luaL_checkstring(L, 1), &height, &width);
    lua_pushnumber(L, (double)height);
    lua_pushnumber(L, (double)width);
    return outside(L, status, 2);
}

static void read_channels(lua_State *L, int arg, int64_t channels, float *out) {
    luaL_checktype(L, arg, LUA_TTABLE);
    for (int i = 0; i < channels; i++) {
        lua_rawgeti(L, arg, i + 1);
        out[i] = (float)luaL_checknumber(L, -1);
        lua_pop(L, 1);
    }
}

/* read(path, into, mean, deviation) -> into, an f32 (channels, height, width) that lies contiguously; or nil, message, code. mean and deviation:
 * a number for each channel, of values in 0..1. */
static int l_read(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    Tensor *t = check_values(L, 2);
    if (t->view.dims != 3 || t->view.dtype != F32 || !tensor_contiguous(t) || (t->view.shape[0] != 1 && t->view.shape[0] != 3) ||
        !t->view.shape[1] || !t->view.shape[2])
        return luaL_argerror(L, 2, "expected a contiguous f32 (1 or 3, height, width)");
    PictureForm form = {.channels = t->view.shape[0], .height = t->view.shape[1], .width = t->view.shape[2]};
    read_channels(L, 3, form.channels, form.mean);
    read_channels(L, 4, form.channels, form.deviation);
    Status status = picture_read(path, &form, t->view.data);
    lua_pushvalue(L, 2);
    return outside(L, status, 1);
}

int bind_picture(lua_State *L) {
    static const luaL_Reg functions[] = {{"size", l_size}, {"read", l_read}, {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
